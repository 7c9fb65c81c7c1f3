"""The world of the clips: scenes of moving coloured shapes, with questions and exact answers.

A clip is a sequence of scenes.  Each scene has a background and one or two things; each thing
does one action for the whole scene.  The background always changes from one scene to the next.

Every answer is a function of the clip and the question alone: there is one phrasing per fact,
and the things of a scene are named in reading order of the region in which they start.  Only the
wording of a question may vary.  This makes a fully correct answer possible and checkable.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (12, 12, 12),
    "white": (242, 242, 242),
    "gray": (128, 128, 128),
    "navy": (16, 24, 92),
    "brown": (96, 58, 24),
    "teal": (0, 98, 98),
}
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (226, 30, 30),
    "green": (40, 190, 50),
    "blue": (50, 90, 255),
    "yellow": (250, 230, 40),
    "orange": (255, 140, 0),
    "purple": (150, 50, 200),
    "pink": (255, 130, 190),
    "cyan": (60, 230, 240),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "ring", "cross")
RADII: dict[str, float] = {"small": 0.09, "large": 0.15}
REGIONS: dict[str, tuple[float, float]] = {
    "top left": (0.2, 0.2),
    "top": (0.5, 0.2),
    "top right": (0.8, 0.2),
    "left": (0.2, 0.5),
    "center": (0.5, 0.5),
    "right": (0.8, 0.5),
    "bottom left": (0.2, 0.8),
    "bottom": (0.5, 0.8),
    "bottom right": (0.8, 0.8),
}
REGION_NAMES: tuple[str, ...] = tuple(REGIONS)
ACTIONS: tuple[str, ...] = ("stay", "move", "grow", "shrink", "blink", "recolor")
ACTION_WEIGHTS: tuple[int, ...] = (2, 4, 1, 1, 1, 1)
_NUMBER_TEXT = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
NUMBERS: tuple[str, ...] = tuple(_NUMBER_TEXT.split())
MAX_SCENES = 16
MAX_FRAMES = 128
MIN_SCENE_FRAMES = 6
MAX_SCENE_FRAMES = 10


@dataclass(frozen=True)
class Thing:
    """One shape and what it does during its scene."""

    shape: str
    color: str
    size: str
    action: str
    start: str
    end: str
    new_color: str | None = None

    @property
    def name(self) -> str:
        """The shortest name that is unique in a clip, such as ``red circle``."""
        return f"{self.color} {self.shape}"

    @property
    def full_name(self) -> str:
        """The name with the size at the start, such as ``small red circle``."""
        return f"{self.size} {self.color} {self.shape}"

    @property
    def deed(self) -> str:
        """What the thing does, as a verb phrase with the place."""
        if self.action == "move":
            return f"moves from the {self.start} to the {self.end}"
        return f"{self.verb} at the {self.start}"

    @property
    def verb(self) -> str:
        """What the thing does, without the place."""
        if self.action == "recolor":
            return f"turns {self.new_color}"
        return {"stay": "stays still", "move": "moves", "grow": "grows"}.get(self.action, f"{self.action}s")


@dataclass(frozen=True)
class Scene:
    """A background and the things on it, in reading order of their start regions."""

    background: str
    things: tuple[Thing, ...]
    frames: int


@dataclass(frozen=True)
class ThingState:
    """A thing as it stands in one frame; lengths are fractions of the frame's side."""

    thing: Thing
    x: float
    y: float
    radius: float
    color: str
    visible: bool


@dataclass(frozen=True)
class FrameState:
    """The ground truth of one frame."""

    scene: int
    frame_in_scene: int
    background: str
    things: tuple[ThingState, ...]


@dataclass(frozen=True)
class Clip:
    """A sequence of scenes."""

    scenes: tuple[Scene, ...]

    @property
    def frames(self) -> int:
        """The number of frames."""
        return sum(scene.frames for scene in self.scenes)

    @cached_property
    def states(self) -> tuple[FrameState, ...]:
        """The ground truth of every frame."""
        return tuple(
            FrameState(index, frame, scene.background, thing_states(scene, frame))
            for index, scene in enumerate(self.scenes)
            for frame in range(scene.frames)
        )


@dataclass(frozen=True)
class Question:
    """A question about a clip and its only correct answer."""

    kind: str
    text: str
    answer: str


def thing_states(scene: Scene, frame: int) -> tuple[ThingState, ...]:
    """Where the things of a scene are in its frame number ``frame``."""
    progress = frame / (scene.frames - 1)
    states = []
    for thing in scene.things:
        (x0, y0), (x1, y1) = REGIONS[thing.start], REGIONS[thing.end]
        first = RADII[thing.size]
        last = {"grow": RADII["large"], "shrink": RADII["small"]}.get(thing.action, first)
        turned = thing.new_color is not None and progress >= 0.5
        states.append(
            ThingState(
                thing=thing,
                x=x0 + (x1 - x0) * progress,
                y=y0 + (y1 - y0) * progress,
                radius=first + (last - first) * progress,
                color=thing.new_color if turned and thing.new_color else thing.color,
                visible=thing.action != "blink" or frame % 2 == 0,
            )
        )
    return tuple(states)


def nearest_region(x: float, y: float) -> str:
    """The region whose centre is nearest to a point."""
    return min(REGIONS, key=lambda name: math.dist(REGIONS[name], (x, y)))


# ---- sampling ----------------------------------------------------------------------------------


def sample_clip(rng: random.Random, scenes: int, frames: int | None = None) -> Clip:
    """Draw a clip of ``scenes`` scenes, of ``frames`` frames in all where that is given."""
    if not 1 <= scenes <= MAX_SCENES:
        raise ValueError(f"a clip has 1 to {MAX_SCENES} scenes, not {scenes}")
    taken: set[tuple[str, str]] = set()
    drawn: list[Scene] = []
    for length in _scene_lengths(rng, scenes, frames):
        before = drawn[-1].background if drawn else None
        background = rng.choice([name for name in BACKGROUNDS if name != before])
        drawn.append(Scene(background, _sample_things(rng, length, taken), length))
    return Clip(tuple(drawn))


def _scene_lengths(rng: random.Random, scenes: int, frames: int | None) -> list[int]:
    longest = min(MAX_SCENE_FRAMES, MAX_FRAMES // scenes)
    if frames is None:
        return [rng.randint(MIN_SCENE_FRAMES, longest) for _ in range(scenes)]
    if not scenes * MIN_SCENE_FRAMES <= frames <= scenes * MAX_SCENE_FRAMES:
        raise ValueError(f"{frames} frames cannot be cut into {scenes} scenes of 6 to 10 frames")
    lengths = [MIN_SCENE_FRAMES] * scenes
    while sum(lengths) < frames:
        open_scenes = [i for i, n in enumerate(lengths) if n < MAX_SCENE_FRAMES]
        lengths[rng.choice(open_scenes)] += 1
    return lengths


def _sample_things(rng: random.Random, frames: int, taken: set[tuple[str, str]]) -> tuple[Thing, ...]:
    count = rng.choice((1, 1, 1, 2, 2))
    while True:
        things = [_sample_thing(rng, taken) for _ in range(count)]
        if count == 1 or _apart(things, frames):
            break
    things.sort(key=lambda thing: REGION_NAMES.index(thing.start))
    for thing in things:
        taken.update(_looks(thing))
    return tuple(things)


def _sample_thing(rng: random.Random, taken: set[tuple[str, str]]) -> Thing:
    """Draw a thing none of whose looks (colour and shape) is in the clip already."""
    while True:
        action = rng.choices(ACTIONS, ACTION_WEIGHTS)[0]
        color = rng.choice(list(COLORS))
        start = rng.choice(REGION_NAMES)
        sizes = {"grow": ("small",), "shrink": ("large",)}
        thing = Thing(
            shape=rng.choice(SHAPES),
            color=color,
            size=rng.choice(sizes.get(action, tuple(RADII))),
            action=action,
            start=start,
            end=rng.choice([r for r in REGION_NAMES if r != start]) if action == "move" else start,
            new_color=rng.choice([c for c in COLORS if c != color]) if action == "recolor" else None,
        )
        if not taken.intersection(_looks(thing)):
            return thing


def _looks(thing: Thing) -> list[tuple[str, str]]:
    return [(c, thing.shape) for c in (thing.color, thing.new_color) if c is not None]


def _apart(things: list[Thing], frames: int) -> bool:
    """Whether two things differ in shape and in every colour and never touch or hide each other."""
    a, b = things
    colors_a, colors_b = ({t.color, t.new_color} - {None} for t in (a, b))
    if a.shape == b.shape or colors_a & colors_b:
        return False
    for frame in range(frames):
        p, q = thing_states(Scene("black", (a, b), frames), frame)
        if math.hypot(p.x - q.x, p.y - q.y) < 1.1 * (p.radius + q.radius):
            return False
    return True


# ---- questions ---------------------------------------------------------------------------------

WORDINGS: dict[str, tuple[str, ...]] = {
    "describe": (
        "Describe the video.",
        "Describe the video in detail.",
        "What happens in the video?",
    ),
    "scene": ("What happens in scene {n}?", "Describe scene {n}."),
    "background": ("What is the background of scene {n}?", "What color is the background in scene {n}?"),
    "object_count": ("How many objects are in scene {n}?", "Count the objects in scene {n}."),
    "which_scene": ("In which scene is the {name}?", "Which scene shows the {name}?"),
    "action": ("What does the {name} do?", "What happens to the {name}?"),
    "place": ("Where is the {name} at first?", "Where does the {name} start?"),
    "size": ("How big is the {name} at first?", "Is the {name} small or large at first?"),
    "color": ("What color is the {shape} in scene {n}?", "Which color does the {shape} in scene {n} have?"),
    "yes_no": ("Does the {name} {deed}?", "Is it true that the {name} {deeds}?"),
    "list": ("List the objects in order.", "Which objects appear in the video?"),
    "scene_count": ("How many scenes are there?", "Count the scenes."),
    "last": ("What does the last scene show?", "What is shown at the end?"),
}
KINDS: tuple[str, ...] = tuple(WORDINGS)
_YES_NO: dict[str, tuple[str, str, str]] = {
    "stay": ("stay still", "stays still", "stays still"),
    "move": ("move", "moves", "moves"),
    "grow": ("grow", "grows", "grows"),
    "shrink": ("shrink", "shrinks", "shrinks"),
    "blink": ("blink", "blinks", "blinks"),
    "recolor": ("change its color", "changes its color", "changes its color"),
}


def scene_text(clip: Clip, index: int) -> str:
    """The description of one scene."""
    scene = clip.scenes[index]
    told = [f"In scene {NUMBERS[index + 1]}, the background is {scene.background}."]
    told += [f"A {thing.full_name} {thing.deed}." for thing in scene.things]
    return " ".join(told)


def describe(clip: Clip) -> str:
    """The description of the whole clip."""
    told = [f"The video has {_counted(len(clip.scenes), 'scene')}."]
    told += [scene_text(clip, index) for index in range(len(clip.scenes))]
    return " ".join([*told, "Nothing else happens in the video."])


def _counted(number: int, noun: str) -> str:
    return f"{NUMBERS[number]} {noun}{'' if number == 1 else 's'}"


def questions(clip: Clip, rng: random.Random | None = None) -> list[Question]:
    """All questions about a clip.

    Without ``rng`` the first wording of each kind is used, and the yes-or-no questions alternate
    between yes and no; with it, wordings and yes-or-no questions are drawn.
    """
    found: list[Question] = []

    def add(kind: str, answer: str, **names: str) -> None:
        wording = rng.choice(WORDINGS[kind]) if rng else WORDINGS[kind][0]
        found.append(Question(kind, wording.format(**names), answer))

    count = len(clip.scenes)
    things = [thing for scene in clip.scenes for thing in scene.things]
    last = clip.scenes[-1]
    add("describe", describe(clip))
    add("scene_count", f"There {'is' if count == 1 else 'are'} {_counted(count, 'scene')}.")
    add("list", f"The objects are {', '.join(f'a {thing.full_name}' for thing in things)}.")
    shown = " and ".join(f"a {thing.full_name}" for thing in last.things)
    add("last", f"The last scene shows {shown} on a {last.background} background.")
    for index, scene in enumerate(clip.scenes):
        _ask_scene(clip, index, add)
        for thing in scene.things:
            _ask_thing(thing, NUMBERS[index + 1], add)
            asked = _asked_action(thing, len(found), rng)
            base, third, _ = _YES_NO[asked]
            verdict = "Yes" if asked == thing.action else "No"
            answer = f"{verdict}, the {thing.name} {_YES_NO[thing.action][2]}."
            add("yes_no", answer, name=thing.name, deed=base, deeds=third)
    return found


def _ask_scene(clip: Clip, index: int, add: Callable[..., None]) -> None:
    scene, number = clip.scenes[index], NUMBERS[index + 1]
    things = len(scene.things)
    add("scene", scene_text(clip, index), n=number)
    add("background", f"The background of scene {number} is {scene.background}.", n=number)
    be = "is" if things == 1 else "are"
    add("object_count", f"There {be} {_counted(things, 'object')} in scene {number}.", n=number)


def _ask_thing(thing: Thing, number: str, add: Callable[..., None]) -> None:
    add("which_scene", f"The {thing.name} is in scene {number}.", name=thing.name)
    add("action", f"The {thing.name} {thing.deed}.", name=thing.name)
    add("place", f"The {thing.name} starts at the {thing.start}.", name=thing.name)
    add("size", f"The {thing.name} is {thing.size} at first.", name=thing.name)
    # A thing that turns has no single colour, so it is not asked about.
    if thing.new_color is None:
        answer = f"The {thing.shape} in scene {number} is {thing.color}."
        add("color", answer, shape=thing.shape, n=number)


def _asked_action(thing: Thing, turn: int, rng: random.Random | None) -> str:
    others = [action for action in ACTIONS if action != thing.action]
    if rng:
        return thing.action if rng.random() < 0.5 else rng.choice(others)
    return thing.action if turn % 2 else others[turn // 2 % len(others)]
