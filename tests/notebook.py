"""Scripts with cells, and the notebooks that hold the same: `python tests/notebook.py`
writes docs/distil_your_own.ipynb anew."""

import json
import pathlib

SCRIPT = pathlib.Path(__file__).parents[1] / "docs" / "distil_your_own.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")


def cells(script: str) -> list[tuple[str, str]]:
    """(kind, source) of each cell, from its line "# %%" or "# %% [markdown]" on."""
    found = []
    for part in script.split("# %%")[1:]:
        head, _, body = part.partition("\n")
        body = body.strip("\n")
        if head.strip() == "[markdown]":
            lines = (
                line.removeprefix("#").removeprefix(" ") for line in body.split("\n")
            )
            found.append(("markdown", "\n".join(lines)))
        else:
            found.append(("code", body))
    return found


def notebook(script: str) -> str:
    """The notebook of a script, without outputs."""
    made = []
    for number, (kind, source) in enumerate(cells(script)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        made.append(cell | {"source": source.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": made,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(SCRIPT.read_text()))
