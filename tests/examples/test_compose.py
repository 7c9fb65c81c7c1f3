"""The compose example: files that fit together, and a board over metrics that exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import yaml
from prometheus_client import CollectorRegistry, generate_latest

from pvlm.cli import main
from pvlm.telemetry.metrics import METRICS
from pvlm.telemetry.prometheus import PrometheusMetrics

from .conftest import EXAMPLES

COMPOSE = EXAMPLES / "compose"
ROOT = EXAMPLES.parent


def test_the_files_that_are_mounted_exist() -> None:
    services = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])]
    assert len(mounted) == 5
    assert all((COMPOSE / path).is_file() for path in mounted if path.startswith("."))
    scraped = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"]
    assert scraped == [{"targets": ["pvlm:8000"]}]


def test_the_board_asks_for_metrics_that_exist() -> None:
    registry = CollectorRegistry()
    metrics = PrometheusMetrics(registry)
    for metric in METRICS:  # values with labels appear once they are set
        labels = dict.fromkeys(metric.labels, "x")
        (metrics.observe if metric.kind == "histogram" else metrics.add)(metric, 1.0, **labels)
    exposed = set(re.findall(r"^(pvlm:\w+)", generate_latest(registry).decode(), re.MULTILINE))
    board = json.loads((COMPOSE / "grafana" / "board.json").read_text())
    asked = {
        name for panel in board["panels"] for one in panel["targets"] for name in re.findall(r"pvlm:\w+", one["expr"])
    }
    assert len(asked) > 10
    assert asked <= exposed


def test_the_image_runs_a_command_that_exists() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", dockerfile, re.MULTILINE)[1])  # type: ignore[index]
    command = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]["pvlm"]["command"]
    assert entry[0] == "pvlm"
    assert main([*entry[1:], *command, "--help"]) == 0
    copied = [shlex.split(line)[1:-1] for line in dockerfile.splitlines() if line.startswith("COPY ")]
    assert all(Path(ROOT / name).exists() for names in copied for name in names)
