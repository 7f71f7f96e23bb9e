"""The data set's card: the funnel, reasons, sources with licences, hashes and pictures, from the summary alone."""

from __future__ import annotations


def card(summary: dict, pictures: list[str]) -> str:
    """README.md of the output folder, with the front matter that the hub reads."""
    stages = summary["stages"]
    lines = [
        "---", "configs:", "- config_name: default", "  data_files:", "  - split: train",
        "    path: parquet/train.parquet", "  - split: test", "    path: parquet/test.parquet", "---",
        f"# {summary['name']}", "",
        f"{summary['train']} questions to train on and {summary['heldout']} held out, with answers that the training "
        "grader can check. Made by openrlhf_orz's curation pipeline "
        f"(seed {summary['seed']}); kept/ has the rows as JSON lines, parquet/ the same rows.", "",
        "## Funnel", "", "| stage | in | out | left out |", "|---|---|---|---|",
    ]  # fmt: skip
    for stage in stages:
        reasons = ", ".join(f"{reason} {count}" for reason, count in stage["reasons"].items())
        lines.append(f"| {stage['stage']} | {stage['rows_in']} | {stage['kept']} | {reasons or '-'} |")
    lines += ["", "rejected.jsonl has every row that was left out, with stage, reason and what it was compared with."]
    for stage in stages:
        if stage.get("clusters") is not None:
            lines.append(
                f"clusters.jsonl has the {stage['clusters']} groups of duplicates; in {stage['conflicts']} of "
                f"them the "
                "answers conflict."
            )
        if stage.get("against"):
            lines.append(
                f"Decontaminated against {stage['questions']} evaluation questions ({', '.join(stage['against'])})."
            )
    collected = stages[0].get("sources", {})
    lines += ["", "## Sources", "", "| source | rows | kept |", "|---|---|---|"]
    for source in sorted(collected, key=lambda name: (-collected[name], name)):
        lines.append(f"| {_cell(source)} | {collected[source]} | {summary['sources'].get(source, 0)} |")
    lines += ["", "| input | from | licence |", "|---|---|---|"]
    for item in stages[0]["inputs"]:
        where = item.get("path") or "generated: " + ", ".join(f"{k} {v}" for k, v in _flat(item["generated"]))
        lines.append(f"| {_cell(item['name'])} | {_cell(where)} | {_cell(item['licence'])} |")
    languages = next((stage["languages"] for stage in stages if stage.get("languages")), None)
    if languages:
        lines += ["", "Languages kept: " + ", ".join(f"{name} {count}" for name, count in languages.items()) + "."]
    lines += ["", "## Pictures", ""] + [f"![{name.removesuffix('.svg')}](pictures/{name})" for name in pictures]
    lines += ["", "## Files", "", "| file | sha256 |", "|---|---|"]
    lines += [f"| {name} | `{digest}` |" for name, digest in summary["files"].items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _flat(generated: dict) -> list[tuple[str, object]]:
    ((kind, options),) = generated.items()
    return [("kind", kind), *options.items()]
