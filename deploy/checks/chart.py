"""Lint the chart, render it with Helm's own code, and check each object against Kubernetes' schemas.

python deploy/checks/chart.py CHART
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import yaml

#: Oldest and newest Kubernetes release that the chart supports.
RELEASES = ("1.27", "1.37")

#: KEDA and the Prometheus operator bring their schemas, so these are only rendered.
NOT_KUBERNETES = {"ScaledObject", "ServiceMonitor", "TriggerAuthentication"}


def rendered(chart: helm.Chart, values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    chart.validate_schema(chart.merge_values(values))
    for name, text in chart.render(values, name="captions", namespace="ml").items():
        if not name.endswith(".txt"):
            yield from filter(None, yaml.safe_load_all(text))


def check_objects(chart: helm.Chart, values: dict[str, Any]) -> int:
    objects = list(rendered(chart, values))
    for one in objects:
        if one["kind"] not in NOT_KUBERNETES:
            for release in RELEASES:
                kubernetes_validate.validate(one, release, strict=True)
    return len(objects)


def main(folder: Path) -> None:
    with helm.Chart.load(str(folder)) as chart:
        for values_file in sorted((folder / "ci").glob("*-values.yaml")):
            values = yaml.safe_load(values_file.read_text())
            if errors := helm.lint(str(folder), values, strict=True)["errors"]:
                sys.exit(f"{values_file}: {errors}")
            print(f"{values_file.name}: {check_objects(chart, values)} valid objects")
        try:
            chart.validate_schema(chart.merge_values({"worker": {"replica": 1}}))
        except helm.HelmError:
            return
    sys.exit("values.schema.json accepts an unknown value; add additionalProperties: false")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
