"""The models of a comparison: named by what was done to them, runs of several seeds put together."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoprune.io.files import json_hash, read_json
from nanoprune.statistics import Ratio

# The steps of the experiment: what each pair of models shows.
REMOVED, TUNED, HEALED, REDUCED, ALTOGETHER = STEPS = (
    "take the block out", "fine-tune the full model", "heal the reduced model", "reduced against full",
    "reduced against the base")
APART = ("name", "runs", "seed", "log")  # settings in which the seeds of one arm may differ
RunRows = list[list[dict]]  # the rows of a table, for each run of an arm


@dataclass(frozen=True)
class Arm:
    """A model, or the runs of one config with several seeds; all are measured on the same items."""

    name: str
    title: str  # the name without what tells it from others of one title
    runs: list[dict]  # results of eval.py, one for each seed

    @property
    def first(self) -> dict:
        return self.runs[0]

    @property
    def removed(self) -> str:
        """The removed blocks in the base's numbers, such as "25" or "3,14.attn"."""
        return removed(self.first)

    @property
    def tuned(self) -> bool:
        return fine_tuned(self.first)

    @property
    def seeds(self) -> list[int]:
        return [run["run"]["seed"] for run in self.runs if run["run"]]

    def rows(self, table: str, questions: str = "") -> RunRows:
        """For each run the rows of a table: test, general, written, or a question set's answers."""
        return [run["answers"][questions] if questions else run[table] for run in self.runs]


def values(runs: RunRows, key: str) -> np.ndarray:
    """A column of the rows of every run (seeds, n)."""
    return np.array([[row[key] for row in rows] for rows in runs], float)


def nats(runs: RunRows) -> Ratio:
    """Nats per token."""
    return Ratio(values(runs, "nll"), values(runs, "tokens")[0])


def bits(runs: RunRows) -> Ratio:
    """Bits per byte."""
    return Ratio(values(runs, "nll") / np.log(2), values(runs, "bytes")[0])


# ---------------------------------------------------------------- one result
def describe_run(folder: Path) -> dict:
    """The settings of the run whose model this is, and the hash of its base; None for another folder."""
    run = folder.parent
    if folder.name != "model" or not (run / "train.csv").is_file():
        return {"run": None, "base_sha256": None}
    return {"run": read_json(run / "config.json"), "base_sha256": read_json(run / "env.json").get("base")}


def removed(result: dict) -> str:
    return ",".join(str(entry.get("original", "?")) for entry in result["history"])


def fine_tuned(result: dict) -> bool:
    return bool(result["run"]) and not isinstance(result["run"]["base"], dict)


def origin(result: dict) -> str:
    """A hash of the weights that a result began as; models that share it come from one base."""
    first = result["history"][0].get("base_sha256") if result["history"] else result["base_sha256"]
    return json_hash(first or result["sha256"])


def without(blocks: str) -> str:
    """Such as "without blocks 3, 25" of "3,25"; empty if there are none."""
    noun = "blocks" if "," in blocks else "block"
    return f"without {noun} {blocks.replace(',', ', ')}" if blocks else ""


def title(result: dict, base: str) -> str:
    """Such as "base without block 25"; `base`: what its base is called."""
    lost = without(removed(result))
    if not fine_tuned(result):
        return f"{base} {lost}".strip()
    run, method = result["run"], ""
    if run.get("lora"):
        method = " (QLoRA)" if run.get("frozen") == "nf4" else " (LoRA)"
    elif run.get("teacher"):
        method = " (distilled)"
    return ("" if base == "base" else f"{base} ") + f"fine-tuned {lost or 'full'}{method}"


# ---------------------------------------------------------------- all results
def make_arms(results: list[dict]) -> list[Arm]:
    """The arms in the order of their first results; each has a name of its own."""
    groups, arms = defaultdict(list), []
    for result in results:
        like = describe_config(result) or f"{result['name']} {len(groups)}"
        groups[title(result, base_name(result, results)), like].append(result)
    for (own, _), runs in groups.items():
        namesakes = [others[0] for (other, _), others in groups.items() if other == own]
        name = f"{own} ({distinction(runs[0], namesakes)})" if len(namesakes) > 1 else own
        by_seed = sorted(runs, key=lambda run: run["run"]["seed"]) if runs[0]["run"] else runs
        arm = Arm(name, own, by_seed)
        if len(runs) > len(set(arm.seeds)) > 0:  # copies of a run
            arms += [Arm(f"{name} ({run['name']})", own, [run]) for run in runs]
        else:
            arms.append(arm)
    return arms


def base_name(result: dict, results: list[dict]) -> str:
    """What the base of a result is called: "base" if all share it, else by its own name."""
    tuned = {json_hash(run["sha256"]): run for run in results if fine_tuned(run)}
    parent = tuned.get(origin(result))
    if parent and parent["sha256"] != result["sha256"]:  # a run that does not know its base is not its own
        return title(parent, base_name(parent, results))
    origins = [key for key in dict.fromkeys(map(origin, results))
               if key not in tuned or key == origin(result)]
    family = [other for other in results if origin(other) == origin(result)]
    unchanged = [other["name"] for other in family if not fine_tuned(other) and not other["history"]]
    if len(origins) == 1 and (len(family) > 1 or not unchanged):
        return "base"
    return unchanged[0] if unchanged else f"base {1 + origins.index(origin(result))}"


def describe_config(result: dict) -> str:
    """A hash of what all seeds of a config have in common; empty for a model that no run made."""
    settings = {key: value for key, value in (result["run"] or {}).items() if key not in APART}
    return json_hash(settings) if settings else ""


def distinction(result: dict, namesakes: list[dict]) -> str:
    """The settings by which a run differs from others of its title, or else its own name."""
    differing = differing_among(namesakes) if all(other["run"] for other in namesakes) else []
    told = [", ".join(f"{key} {other['run'].get(key)}" for key in differing[:2])
            for other in (result, *namesakes)]
    return told[0] if told.count(told[0]) == 2 and len(told[0]) < 80 else result["name"]


def differing_among(results: list[dict]) -> list[str]:
    """The settings in which any of these runs differ."""
    first, *others = (result["run"] for result in results)
    return sorted({key for other in others for key in differing_settings(first, other)})


def differing_settings(a: dict, b: dict) -> list[str]:
    """The settings in which two runs differ, names and seeds apart."""
    return sorted(key for key in a.keys() | b.keys() if key not in APART and a.get(key) != b.get(key))


def find_steps(arms: list[Arm]) -> dict[str, list[tuple[Arm, Arm]]]:
    """The pairs of models that show each step of the experiment; a run stands beside its nearest."""
    steps = {step: [] for step in STEPS}
    for arm in arms:
        kin = [other for other in arms if origin(other.first) == origin(arm.first)]
        bases = [other for other in kin if not other.tuned and not other.removed]
        reduced = [other for other in kin if not other.tuned and other.removed == arm.removed]
        full = [other for other in kin if other.tuned and not other.removed]
        if not arm.tuned:
            step, before = REMOVED, bases if arm.removed else []
        elif not arm.removed:
            step, before = TUNED, bases
        else:
            step, before = HEALED, reduced
            full.sort(key=lambda other: len(differing_settings(other.first["run"], arm.first["run"])))
            steps[REDUCED] += [(other, arm) for other in full[:1]]
            steps[ALTOGETHER] += [(other, arm) for other in bases[:1]]
        steps[step] += [(other, arm) for other in before[:1]]
    return steps


def warnings(arms: list[Arm], steps: dict[str, list[tuple[Arm, Arm]]]) -> list[str]:
    """What a reader must know before trusting the comparison."""
    healed = [arm.name for _, arm in steps[HEALED]]
    others = ", ".join(sorted({arm.name for arm in arms if arm.removed and not arm.tuned}))
    lines = [f"{arm.name} began {without(arm.removed)}, and stands beside {others}: another model, "
             "which shows nothing of its healing."
             for arm in arms if arm.tuned and arm.removed and others and arm.name not in healed]
    for full, reduced in steps[REDUCED]:
        settings = [key for key in differing_settings(full.first["run"], reduced.first["run"])
                    if key not in ("drop_blocks", "base")]
        if settings:
            lines.append(f"{full.name} and {reduced.name} differ in {', '.join(settings)}, too.")
        if full.seeds != reduced.seeds:
            paired = "only those of both" if set(full.seeds) & set(reduced.seeds) else "the first of each"
            lines.append(f"{full.name} has the seed(s) {listed(full.seeds)}, {reduced.name} "
                         f"{listed(reduced.seeds)}: {paired} are paired.")
    for name in dict.fromkeys(arm.title for arm in arms if arm.tuned):
        namesakes = [arm.first for arm in arms if arm.title == name]
        if len(namesakes) > 1:
            keys = ", ".join(differing_among(namesakes)) or "their names alone"
            lines.append(f"The runs of {name} differ in {keys}: they are not put together as seeds of one "
                         "config.")
    return lines


def listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))
