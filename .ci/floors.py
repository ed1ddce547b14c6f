"""Compares a run's evaluation.json with floors.json; exit code 1 where one is not reached."""

import json
import pathlib
import sys


def look_up(tree, name):
    for part in name.split("."):
        tree = tree[part]
    return tree


def main(workdir):
    floors = json.loads(pathlib.Path(__file__).with_name("floors.json").read_text())
    result = json.loads((pathlib.Path(workdir) / "evaluation.json").read_text())
    failed = 0
    for name, floor in floors.items():
        value = look_up(result, name)
        good = value >= floor
        failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {name} = {value:.4f}, floor {floor}")
    print(f"{len(floors) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
