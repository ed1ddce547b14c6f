"""A pipeline as a folder of the layout that model hubs know; `Pipeline.save_pretrained` writes it.

    config.json                     the config of the run
    model.safetensors               the weights (`trees.save_tree`); above SHARD bytes several files
                                    and `model.safetensors.index.json`, which lists them
    image_tokenizer.safetensors     the image tokenizer
    text.model                      the text tokenizer
    evaluation.json                 the results, if there are any
    README.md                       the model card (`card`)

`fetch` downloads such a folder from a hub, `push` uploads one, both with the package
huggingface_hub (the extra `hub`).

A folder from elsewhere is data and not a program. No file in it is unpickled or imported, and
`check` refuses a folder with links, with files that could run code, or with a config that names
files outside of it. When a folder is written, such names lose their folders.
"""

import contextlib
import json
import pathlib
import re

import ml_collections
import ml_dtypes
import numpy as np

from udd_jax import build, modalities
from udd_jax.data import pixels
from udd_jax.diffusion import tasks
from udd_jax.errors import NotFound, UserError
from udd_jax.runtime import files, provenance, trees
from udd_jax.tokenizers import embedding_tokenizer, image_tokenizer

WEIGHTS, CARD, RESULT = "model.safetensors", "README.md", "evaluation.json"
# {kind: (file of a modality's tokenizer, "" if there is none, how it is written)}
TOKENIZERS = {
    "image": ("image_tokenizer.safetensors", image_tokenizer.save),
    "text": ("text.model", lambda path, tokenizer: tokenizer.save(path)),
    "sound": (
        "{name}_tokenizer.safetensors",
        lambda path, t: image_tokenizer.save(path, t.pictures),
    ),
    "embedding": ("{name}_tokenizer.safetensors", embedding_tokenizer.save),
    **dict.fromkeys(("layout", "length", "features"), ("", None)),
    "coarse": ("image_tokenizer.safetensors", lambda path, tokenizer: None),  # the image writes it
}
INDEX = f"{WEIGHTS}.index.json"
SHARD = 5 * 10**9  # most bytes of a file of weights, the custom of hubs
NAME = re.compile(r"[\w.-]+/[\w.-]+")  # of a model on a hub
DTYPES = ("float32", "bfloat16")
FILES = (build.CONFIG, WEIGHTS, *(TOKENIZERS[k][0] for k in modalities.ALWAYS), RESULT, CARD)
# Endings of files that hold programs, or pickles, which are programs too.
_PROGRAMS = (
    *(".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"),
    *(".dll", ".h5", ".keras", ".py", ".pyc", ".sh", ".so"),
)
_MAGIC = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")  # pickles, archives


def write(
    folder,
    config,
    tokenizers: dict,
    params,
    evaluation: dict | None,
    about: str,
    dtype: str = "float32",
    shard: int = SHARD,
) -> None:
    """Writes the folder; UserError if `folder` has something already.

    evaluation: the content of `evaluation.json`, or None. about: the model card. dtype: of the
    weights in the file, float32 or bfloat16. shard: the most bytes of one file of weights.
    """
    folder = pathlib.Path(folder)
    if dtype not in DTYPES:
        raise UserError(f"dtype = {dtype!r}, expected {' or '.join(DTYPES)}")
    if shard < 1:
        raise UserError(f"shard = {shard}, expected a number of bytes, at least 1")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder: choose another one")
    stored = _without_folders(json.loads(config.to_json()))
    with files.whole(folder) as new:
        new.mkdir(parents=True)
        record = {"config": stored, "made_with": provenance.versions()}
        files.write_json(new / build.CONFIG, record)
        _write_weights(new, params, dtype, shard)
        for name, row in modalities.own(config).items():
            file, save = TOKENIZERS[row["kind"]]
            if file:
                save(new / file.format(name=name), tokenizers[name])
        if evaluation is not None:
            files.write_json(new / RESULT, _without_folders(evaluation))
        files.write_text(new / CARD, about)


def _write_weights(folder, params, dtype, shard) -> None:
    leaves = {name: np.asarray(leaf) for name, leaf in trees.flatten(params).items()}
    if dtype == "bfloat16":
        small = lambda a: a.astype(ml_dtypes.bfloat16) if a.dtype == np.float32 else a  # noqa: E731
        leaves = {name: small(leaf) for name, leaf in leaves.items()}
    parts, size = [{}], 0
    for name, leaf in leaves.items():
        if parts[-1] and size + leaf.nbytes > shard:
            parts.append({})
            size = 0
        parts[-1][name] = leaf
        size += leaf.nbytes
    if len(parts) == 1:
        trees.save_tree(folder / WEIGHTS, trees.nest(leaves))
        return
    stem, where = WEIGHTS.removesuffix(".safetensors"), {}
    for i, part in enumerate(parts):
        file = f"{stem}-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        trees.save_tree(folder / file, trees.nest(part))
        where |= dict.fromkeys(part, file)
    total = {"total_size": sum(leaf.nbytes for leaf in leaves.values())}
    files.write_json(folder / INDEX, {"metadata": total, "weight_map": where})


def _read_weights(folder) -> dict:
    """The tree of the weights; bfloat16 becomes float32."""
    found = [WEIGHTS]
    if not (folder / WEIGHTS).exists():
        where = files.read_json(folder / INDEX).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(v, str) for v in where.values()):
            raise UserError(f"{folder / INDEX} is damaged, expected a weight_map: make it again")
        found = sorted(set(where.values()))
    leaves = {}
    for name in found:
        if _outside(name) or "/" in name or "\\" in name:
            raise UserError(f"{folder / INDEX} refused: {name!r} is a file outside of the folder")
        leaves |= trees.flatten(trees.load_tree(folder / name)[0])
    large = lambda a: a.astype(np.float32) if a.dtype == ml_dtypes.bfloat16 else a  # noqa: E731
    return trees.nest({name: large(leaf) for name, leaf in leaves.items()})


def is_one(folder) -> bool:
    """Whether `folder` has the layout of this file; else it may be the folder of a run."""
    return any((pathlib.Path(folder) / name).exists() for name in (WEIGHTS, INDEX))


def read(folder, links=None) -> tuple[ml_collections.ConfigDict, dict, dict]:
    """(config, {modality: tokenizer}, weights). links: see `check`.

    Raises:
        ValueError, FileNotFoundError: one line; a file is missing, damaged or refused.
    """
    folder = pathlib.Path(folder)
    check(folder, links)
    config = build.read_config(folder)
    for name, value in _strings(config.to_dict()):
        if _outside(value):
            raise UserError(
                f"{folder / build.CONFIG} refused: {name} = {value!r} names a file outside of it"
            )
    tokenizers = {}
    for name, row in modalities.own(config).items():
        file = TOKENIZERS[row["kind"]][0].format(name=name)
        if file and not (folder / file).exists():
            raise NotFound(f"{folder} has no file {file!r}: it is not complete")
        tokenizers[name] = modalities.KINDS[row["kind"]].load(folder / file, row)
    return config, modalities.with_references(config, tokenizers), _read_weights(folder)


def fetch(name: str, revision: str | None = None, **options) -> pathlib.Path:
    """Downloads a model of a hub, only the files of this layout; returns its folder in the cache.

    revision: a branch, a tag or a commit. options: those of `huggingface_hub.snapshot_download`,
    such as token, cache_dir, endpoint and local_files_only. UserError, one line.
    """
    shards = f"{WEIGHTS.removesuffix('.safetensors')}-*-of-*.safetensors"
    with _online(name, "is no folder here, and as a model on the hub") as client:
        allowed = [*FILES, "*_tokenizer.safetensors", INDEX, shards]
        path = client.snapshot_download(name, revision=revision, allow_patterns=allowed, **options)
    return pathlib.Path(path)


def push(folder, name: str, private=False, message="Upload a pipeline", **options) -> str:
    """Uploads a folder that `write` wrote; makes the model if it does not exist.

    options: token, endpoint of `huggingface_hub.HfApi`. Returns the address of the commit.
    UserError, one line.
    """
    require_name(name)
    with _online(name) as client:
        hub = client.HfApi(library_name="udd_jax", **options)
        hub.create_repo(name, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=folder, commit_message=message))


def require_name(name: str) -> None:
    """UserError unless it can be the name of a model on a hub."""
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} is not the name of a model, expected org/name")


@contextlib.contextmanager
def _online(name, where="on the hub"):
    """The client of a hub; what goes wrong there, or on the way, is one line."""
    try:
        import httpx
        import huggingface_hub as client
    except ImportError:
        raise UserError(
            f"{name!r} is not a folder here; a model of a hub needs: pip install 'udd_jax[hub]'"
        ) from None
    try:
        yield client
    except (httpx.HTTPError, RuntimeError, ValueError, OSError) as error:
        # An upload that fails in a thread is a RuntimeError, whose cause says why.
        why = " ".join(f"{error} {error.__cause__ or ''}".split()) or type(error).__name__
        raise UserError(f"{name!r} {where}: {why}") from None


def check(folder, links=None) -> None:
    """UserError, one line, if the folder holds a link or a file that could run code.

    links: a folder into which links may lead, as in the cache of a hub; None allows none.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise NotFound(f"{folder} is not a folder")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            if links is None or not path.resolve().is_relative_to(pathlib.Path(links).resolve()):
                raise UserError(f"{folder} refused: {path.name} is a link: put the file itself")
        elif not path.is_dir() and not path.is_file():
            raise UserError(f"{folder} refused: {path.name} is not a regular file")
        if path.is_dir():
            continue
        if path.suffix.lower() in _PROGRAMS:
            raise UserError(f"{folder} refused: {path.name} may hold a program: remove it")
        with path.open("rb") as file:
            start = file.read(4)
        # A safetensors file begins with a length, which may be any number.
        if path.suffix != ".safetensors" and start.startswith(_MAGIC):
            raise UserError(f"{folder} refused: {path.name} is a pickle or an archive: remove it")


def _strings(value, name: str = "config"):
    """(name, text) of all strings in nested dicts and lists."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _strings(inner, f"{name}.{key}")


def _outside(text: str) -> bool:
    """Whether a text, or its part after `kind:`, is a path that leads out of a folder."""
    for word in (text, text.partition(":")[2]):
        for kind in (pathlib.PurePosixPath, pathlib.PureWindowsPath):
            path = kind(word)
            if path.anchor or ".." in path.parts or word.startswith("~"):
                return True
    return False


def _without_folders(value):
    """A JSON value in which paths that lead outside are only the last of their names."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    if not isinstance(value, str) or not _outside(value):
        return value
    kind, colon, path = value.partition(":")
    kept = colon and kind.isalpha() and len(kind) > 1  # "folder:", and not the drive "C:"
    last = (path if kept else value).replace("\\", "/").rstrip("/").rpartition("/")[2]
    return (f"{kind}:" if kept else "") + last.strip("~.")


def card(
    config, vocab, count: int, evaluation: dict | None, license: str, name: str = "THIS FOLDER"
) -> str:
    """The model card: what it is, how to use it, results, data and limits, in Markdown.

    count: parameters of the network; license: an identifier such as "apache-2.0"; name: what
    `from_pretrained` takes.
    """
    config = ml_collections.ConfigDict(_without_folders(json.loads(config.to_json())))
    names = [m.name for m in vocab.modalities]
    mixture = {task: weight for task, weight in config.train.mixture.items() if weight > 0}
    tokens = "; ".join(
        f"{m.name}: {m.length} tokens of {m.classes} classes" for m in vocab.modalities
    )
    does = _directions(vocab, mixture)
    lines = [
        "---",
        "library_name: udd_jax",
        f"license: {json.dumps(license)}",
        f"pipeline_tag: {(does or ['unconditional-image-generation'])[0]}",
        f"tags: [{', '.join(['jax', 'discrete-diffusion', *does])}]",
        "---",
        "",
        f"# {config.name}",
        "",
        f"One network with {count:,} parameters over {' and '.join(names)}, by discrete diffusion "
        "(UniD3, arXiv 2211.14842). What it generates, and given what, are the tasks below.",
        "",
        "## How to use",
        "",
        "    import udd_jax",
        f"    pipe = udd_jax.Pipeline.from_pretrained({json.dumps(name)})",
        '    pipe.text_to_image("a caption", num=4, seed=0).pil',
        "",
        "## What it was trained on",
        "",
        f"Data: {config.data}. Tasks, with their weights: "
        + ", ".join(f"{task} {weight:g}" for task, weight in mixture.items())
        + f". {config.train.steps:,} steps of {config.train.batch_size}.",
        "",
        "## Results",
        "",
        *_results(evaluation),
        "",
        "## Limits",
        "",
        f"- Images are {pixels.shown(config.image_size)} pixels"
        f"{pixels.SAID[modalities.image_channels(config)]}; {tokens}.",
        "- A longer caption is refused.",
        "- It knows what is in the data above and nothing else.",
    ]
    if evaluation and evaluation.get("unmeasured"):
        lines += [f"- Not measured: {'; '.join(evaluation['unmeasured'])}."]
    return "\n".join(lines) + "\n"


def _directions(vocab, mixture) -> list[str]:
    """The hub's names of what a mixture trains between texts and pictures."""
    rules = [tasks.parse(vocab, task) for task in mixture]
    names = {"text-to-image": ("image", "text"), "image-to-text": ("text", "image")}
    return [
        name
        for name, (free, other) in names.items()
        if any(free in rule.free and other in rule.free + rule.given for rule in rules)
    ]


def _results(evaluation: dict | None) -> list[str]:
    if not evaluation:
        return ["This model has not been evaluated."]
    protocol = evaluation["manifest"]["protocol"]
    lines = [
        f"Split {protocol['split']}, {protocol['item_count']} items, suite {protocol['suite']}; "
        "± is one standard error.",
    ]
    if not evaluation.get("headline"):  # what is right can be read in an embedded world only
        return [*lines, "All that was measured is in `evaluation.json`."]
    lines += [
        "",
        "| task | measure | value | better |",
        "|---|---|---|---|",
    ]
    for row in evaluation["headline"]:
        value = f"{row['value']:.3f} ± {row['error']:.3f}"
        lines.append(f"| {row['task']} | {row['name']} | {value} | {row['better']} |")
    if evaluation.get("errors"):
        lines += ["", "Impossible results: " + "; ".join(evaluation["errors"]) + "."]
    return lines
