"""Every shipped recipe is a whole one: it parses, and its head says command, cost and expected figure."""

from __future__ import annotations

import re

import pytest

from .source import REPOSITORY

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_parses(path):
    from vitrail.training.recipe import Recipe

    assert Recipe.load(path, environment={}).task in ("classify", "translate", "pixels", "detect", "segment", "restore")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_says_what_it_costs_and_reaches(path):
    head = "".join(line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.startswith("#"))
    assert f"vitrail train recipes/{path.name}" in head, "the head names the command"
    assert re.search(r"\bminutes?\b|\bhours?\b", head), "the head names the cost"
    figure = r"\d+(\.\d+)?\s*(%|sacreBLEU|bits|dB)"
    assert re.search(figure, head), "the head names the expected figure"
