"""The model for lmms-eval, on toy models. ``make lmms-eval`` runs the real package, here its few names are imitated."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pvlm import ConfigError, Engine, OptionError
from tests.support.plugin import DRAFT, TARGET, toy_plugin

TOY: dict[str, Any] = {"target": TARGET, "draft": DRAFT, "backend": "toy", "transport": "inproc", "window": 4}
GREEDY = {"max_new_tokens": 12, "do_sample": False, "temperature": 0, "num_beams": 1, "top_p": None, "until": ["\n\n"]}


class Imitation(SimpleNamespace):
    """Keeps its keywords."""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    logged: list[dict[str, Any]] = []
    names = {
        "api.instance": {"GenerationResult": Imitation, "TokenCounts": Imitation, "Instance": Imitation},
        "api.model": {"lmms": type("lmms", (), {"__init__": lambda self: setattr(self, "task_dict", {})})},
        "models.model_utils.gen_metrics": {"log_metrics": lambda **figures: logged.append(figures)},
        "models.registry_v2": {"ModelManifest": Imitation},
    }
    with pytest.MonkeyPatch.context() as patch, toy_plugin(tmp_path_factory.mktemp("site")):
        for place in ("", ".api", ".models", ".models.model_utils"):
            patch.setitem(sys.modules, f"lmms_eval{place}", ModuleType(f"lmms_eval{place}"))
        for place, values in names.items():
            imitated = ModuleType(f"lmms_eval.{place}")
            vars(imitated).update(values)
            patch.setitem(sys.modules, imitated.__name__, imitated)
        patch.delitem(sys.modules, "pvlm.bench.lmms_eval", raising=False)
        import pvlm.bench.lmms_eval as found

        yield SimpleNamespace(**vars(found), logged=logged)
        del sys.modules["pvlm.bench.lmms_eval"]


def asked(module: Any, parts: list[list[dict[str, Any]]], **arguments: Any) -> list[Any]:
    """The results for requests with these parts in one message each."""
    model = module.PvlmModel(**TOY, **arguments, batch_size=1)
    model.task_dict = {"task": {"test": parts}}

    def messages(doc: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": doc}]

    instances = [Imitation(args=("", messages, GREEDY, number, "task", "test")) for number in range(len(parts))]
    results: list[Any] = model.generate_until(instances)
    return results


def test_answers_are_the_engine_s_in_order(module: Any, tmp_path: Path) -> None:
    questions = ["Why?", "How?", "Where is it?"]
    parts = [[{"type": "text", "text": question}] for question in questions]
    parts.append([{"type": "video", "url": str(tmp_path / "missing.mp4")}, {"type": "text", "text": "Why?"}])
    with Engine.create(**TOY, method="ar") as engine:
        expected = [engine.answer_sync(None, question, max_tokens=12) for question in questions]
    for method in ("ar", "parallel"):
        *answered, failed = asked(module, parts, method=method, device='"cpu"')
        assert [one.text for one in answered] == [one.text for one in expected]
        assert [one.token_counts.output_tokens for one in answered] == [len(one.tokens) for one in expected]
        assert failed.text.startswith(module.FAILED)
        assert module.logged[-1]["total_gen_tokens"] == sum(len(one.tokens) for one in expected)
    assert module.logged[-1]["additional_metrics"]["acceptance_rate"] > 0
    assert (module.MANIFEST.model_id, module.MANIFEST.chat_class_path) == ("pvlm", "pvlm.bench.lmms_eval.PvlmModel")


def test_a_task_s_settings_become_options(module: Any) -> None:
    assert module.answer_options_of(GREEDY) == {"max_tokens": 12}
    sampled = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 1}
    assert module.answer_options_of(sampled) == {name: value for name, value in sampled.items() if name != "do_sample"}
    for unknown in ({"num_beams": 4}, {"repetition_penalty": 1.1}):
        with pytest.raises(OptionError, match=next(iter(unknown))):
            module.answer_options_of(unknown)
    with pytest.raises(ConfigError, match="targt"):
        module.PvlmModel(targt="x")


def test_pictures_and_videos_become_parts(module: Any) -> None:
    picture = {"type": "image", "url": Image.new("L", (4, 2))}
    (turn,) = module.conversation([{"role": "user", "content": [{"type": "video", "url": "/clip.mp4"}, picture]}])
    assert turn["content"][0] == {"type": "video", "video": "/clip.mp4"}
    assert np.shape(turn["content"][1]["image"]) == (2, 4, 3)
    with pytest.raises(OptionError, match="start_time"):
        module.conversation([{"role": "user", "content": [{"type": "video", "url": "/clip.mp4", "start_time": 1.0}]}])
