"""What can be asked of steering in this world: edits, painted words, a colour, a reference picture.

Each function draws a case, and the case says of a scene that was read back whether it is right.
"""

import dataclasses

import numpy as np

from udd_jax.data.sources import worlds
from udd_jax.data.sources.shapes import drawing, scenes
from udd_jax.data.sources.shapes.scenes import Object, Scene

ATTRIBUTES = {"colour": tuple(scenes.COLOURS), "shape": scenes.SHAPES, "size": tuple(scenes.SIZES)}
WORD = "blue"


def told(scene: Scene) -> str:
    """A caption that names everything, the objects in the order of their cells."""
    words = [f"a {thing.size} {thing.colour} {thing.shape}" for thing in scene.objects]
    if len(words) == 1:
        return f"{words[0]} in the {scenes.PLACES[scene.place[0]]}"
    return f"{words[0]} {scenes.RELATIONS[scene.place]} {words[1]}"


def edit(scene: Scene, number: int, rng: np.random.Generator) -> worlds.Edit:
    """One attribute (colour, shape, size in turn) of one object is another one."""
    name = tuple(ATTRIBUTES)[number % 3]
    which = int(rng.integers(len(scene.objects)))
    old = getattr(scene.objects[which], name)
    others = [value for value in ATTRIBUTES[name] if value != old]
    value = others[rng.integers(len(others))]

    def changed(scene: Scene, value) -> Scene:
        things = list(scene.objects)
        things[which] = dataclasses.replace(things[which], **{name: value})
        return Scene(tuple(things))

    def kept(read: Scene) -> bool:
        """All but the attribute is as before."""
        return read.place == scene.place and changed(read, old) == scene

    return worlds.Edit(told(changed(scene, value)), kept)


def paint(phrases: int, rng: np.random.Generator) -> worlds.Painting:
    """A caption of one or two objects that leaves their place open, and a quarter for each."""
    kinds = [scenes.KINDS[i] for i in rng.choice(len(scenes.KINDS), phrases, replace=False)]
    cells = [int(cell) for cell in rng.choice(4, phrases, replace=False)]
    if phrases == 2:  # a relation that two places of the pair have
        cells = [(0, 1), (1, 0), (0, 2), (2, 0), (2, 3), (3, 2), (1, 3), (3, 1)][rng.integers(8)]
    words = [" ".join(kind) for kind in kinds]
    caption = " ".join(["a", words[0]])
    if phrases == 2:
        caption += f" {scenes.RELATIONS[tuple(cells)]} a {words[1]}"
    masks = []
    for cell in cells:
        mask = np.zeros((drawing.IMAGE_SIZE,) * 2, bool)
        row, column = (drawing.CELL_SIZE * place for place in scenes.CELLS[cell])
        mask[row : row + drawing.CELL_SIZE, column : column + drawing.CELL_SIZE] = True
        masks.append(mask)
    wanted = {(kind, cell) for kind, cell in zip(kinds, cells, strict=True)}

    def placed(read: Scene) -> bool:
        return {(thing.kind, thing.cell) for thing in read.objects} == wanted

    return worlds.Painting(caption, tuple(zip(words, masks, strict=True)), placed)


def colours(scene: Scene) -> frozenset[str]:
    return frozenset(thing.colour for thing in scene.objects)


def reference(rng: np.random.Generator) -> worlds.Reference:
    """A picture of two objects of one colour, which is not that of the word."""
    others = [colour for colour in scenes.COLOURS if colour != WORD]
    colour = others[rng.integers(len(others))]
    cells = sorted(int(cell) for cell in rng.choice(4, 2, replace=False))
    size, shape = tuple(scenes.SIZES), scenes.SHAPES
    things = (Object(shape[rng.integers(3)], colour, size[rng.integers(2)], c) for c in cells)
    picture = drawing.render(Scene(tuple(things)))
    return worlds.Reference(
        picture, lambda scene: colours(scene) == {colour}, lambda scene: colour in colours(scene)
    )


STEERING = worlds.Steering(
    edit=edit,
    paint=paint,
    word=WORD,
    has_word=lambda scene: WORD in colours(scene),
    reference=reference,
)
