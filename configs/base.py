"""All settings and their defaults: a captioned 32 x 32 world on two CPU cores.

`t2i.py`, `i2t.py` and `pair.py` start from here. A field that a command line does not find here
is an error, so this is also the list of what can be set: `--config.train.steps=4000`.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.name = "t2i"
    c.seed = 0
    c.init_from = ""  # a finished run whose weights to start from, where they fit
    # What the evaluation and the report put first; the model does every task.
    c.task = "t2i"

    # A source of captioned images (udd_jax/data/sources) and its options.
    c.data = "shapes"
    # Those that the source has no use for are refused where they are set; None is its own default.
    c.data_options = ml_collections.ConfigDict(
        {
            "size": placeholder(int),  # items of a split, at most; of an embedded world, exactly
            "seed": placeholder(int),  # of an embedded world
            "captions_per_image": placeholder(int),  # of an embedded world
            "validation": placeholder(float),  # share, where the data give no such split; .05
            "test": placeholder(float),
            "trust_splits": placeholder(bool),  # True: no picture is in two splits, do not look
            "caption_field": placeholder(str),
            "split_field": placeholder(str),  # "split"; a name that no row has reads none
            "image_field": placeholder(str),  # of parquet
            "images": placeholder(str),  # of coco: where the image files are
            "template": placeholder(str),  # of tfds, as data_dir
            "data_dir": placeholder(str),
        }
    )
    c.skip_limit = 0.01  # largest share of pictures, or of captions, that may be unusable
    c.image_size = 32
    c.views = 1  # cached random crops and flips of an image; 1 is the plain one
    c.flip = False
    c.cache = True  # or train on pictures that are read, cut and tokenized anew in every epoch
    c.workers = 0  # processes that read and decode pictures; 0 is threads of the job's own

    c.text = ml_collections.ConfigDict(
        {
            "file": "",  # a vocabulary to use: .model, merges .txt.gz, tokenizer.json; or train one
            "vocab_size": 1024,  # at most
            "length": 13,  # M, tokens of a caption
        }
    )

    # The image tokenizer (training/train_image_tokenizer.py): a taming VQGAN, here cut down to
    # cells of 8 x 8 pixels, each a code that sees nothing else (`local_*`).
    c.vq = ml_collections.ConfigDict(
        {
            "file": "",  # a finished tokenizer to use; or train one
            "model": {
                "n_embed": 192,  # K, at most
                "embed_dim": 32,
                "z_channels": 32,
                "ch": 64,
                "ch_mult": (1,),
                "num_res_blocks": 0,
                "attn_resolutions": (),
                "quantiser": "ema",  # or "straight_through", "gumbel"
                "beta": 0.25,
                "patch": 8,
                "local_encoder": True,
                "local_decoder": True,
            },
            "pictures": 4096,  # of the training split, at most; 0 is all
            "steps": 800,
            "batch_size": 64,
            "learning_rate": 5e-3,
            "warmup": 20,
            "beta1": 0.9,
            "beta2": 0.99,
            "clip": 1.0,
            "plain_steps": 100,  # as an autoencoder, before there is a codebook
            "loss": "l2",  # or "l1"
            "commitment": 1.0,  # weight of the quantiser's loss; for "gumbel" far less, as 5e-4
            "decay": 0.99,  # of the codebook's moving averages
            "restart": {"until": 0.8, "threshold": 0.02, "factor": 2.0},  # of dead codes
            "merge": 5.0,  # joins codes that only divide noise; 0 keeps all
            "temperature": (0.9, 1e-6),  # of the Gumbel quantiser, from and to
            "perceptual": 0.0,  # weight of LPIPS, which is off without its files
            "weights": "",  # the folder that they are in
            "adversarial": {
                "weight": 0.0,
                "start": 0,
                "channels": 64,
                "layers": 3,
                "learning_rate": 1e-4,
            },
            # Another codebook for the trained tokenizer, of so many codes; 0 keeps the first.
            "rebuild": {"codes": 0, "steps": 400, "learning_rate": 1e-4},
            "log_every": 50,
            "save_every": 400,
            "keep": 1,
        }
    )

    c.diffusion = ml_collections.ConfigDict(
        {
            "steps": 100,  # T
            "schedule": "linear",
            "image_schedule": "",  # where the modalities differ
            "text_schedule": "",
            "schedule_options": {},
        }
    )

    c.model = ml_collections.ConfigDict(
        {
            "layers": 4,
            "width": 128,
            "heads": 4,
            "mlp_ratio": 2,
            "attention": "mutual",
            "block_attention": False,  # True: what is given is computed once a chain, not a step
            "time": "per_modality",
            "time_table": "tied",
            "given_vector": True,
            "mutual_gain": 0.1,
            "rotary": True,
            "mask_padding": False,  # True hides the padding of given texts from all that looks
            "qk_norm": True,
            "activation": "relu",
            "rezero": 1.0,
            "implementation": "flat",
            "unroll": 4,
            "remat": "none",
            "dtype": "float32",
        }
    )

    c.train = ml_collections.ConfigDict(
        {
            "steps": 5000,
            "batch_size": 64,
            "optimiser": "muon",  # or "adamw"
            "learning_rate": 4e-3,
            "warmup": 150,
            "decay": "linear",  # or "cosine"
            "final_rate": 0.05,  # of the learning rate, at the end
            "beta1": 0.9,
            "beta2": 0.98,
            "weight_decay": 0.02,
            "clip": 5.0,  # of the gradient's global norm
            "ema": 0.995,
            # The bound of T steps, or "continuous", for schedules that only mask.
            "objective": "discrete",
            "auxiliary": 0.2,  # lambda, the weight of -log p(x_0 | x_t)
            "pad_weight": 1.0,
            "image_weight": 1.0,  # less where an image has many more tokens than its text
            "mixture": {  # of tasks in a batch
                "pair": 0.25,
                "t2i": 0.2,
                "i2t": 0.4,
                "infill": 0.11,
                "image": 0.02,
                "text": 0.02,
            },
            "accumulate": 1,  # parts of a batch that are taken one after the other
            "held_out": 0,  # pairs whose bound says which checkpoint is the best; 0 keeps the last
            "log_every": 50,
            "save_every": 500,
            "keep": 2,
            "fan_in": True,  # initialisation by fan-in; False is the published N(0, 0.02)
        }
    )

    c.sample = ml_collections.ConfigDict(
        {
            "sampler": "first_hitting",
            "steps": 25,  # of the samplers that are told
            "guidance": 1.0,
            "temperature": 1.15,  # with top_r: sharper than the network, and as varied
            "top_r": 0.75,
            "top_k": 0,
        }
    )

    c.evaluate = ml_collections.ConfigDict(
        {
            "samples": 512,  # a task
            "batch_size": 128,
            "bound_samples": 256,
            "bound_times": 16,  # times an item for the bound
            "seed": 1,
            "split": "test",  # settings are chosen on "validation"
            "aims": True,  # hold the rates against the world's aims; False: too small to be good
            "only": "",  # "field=value" measures the items alone whose record says so
            # Of the suite "full".
            "weights": "",  # folder with those of Inception, CLIP, LPIPS
            "pictures": 0,  # generated for Frechet distance and the like; 0 is `samples`
            "retrieval": 200,  # items whose captions and pictures are looked for
            "among": 20,
            "round_trips": 128,
            "category": "",  # the record's field that the report by category is about
            "judged": 24,  # pictures of either kind on the sheets for judges
        }
    )

    c.mesh = ml_collections.ConfigDict({"data": -1, "model": 1})
    return c
