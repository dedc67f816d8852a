"""The rows of adversarial/*.jsonl as they are run. Where a text would fill a screen, neighbours.jsonl writes it as a list of pieces:
"as it is" or ["a piece", times]; here they are one text again."""
import json
import pathlib

DIRECTORY = pathlib.Path(__file__).parent / "adversarial"


def joined(pieces):
    return "".join(p if isinstance(p, str) else p[0] * p[1] for p in pieces)


def rows(name):
    """Of cases.jsonl (the rows that were given) or neighbours.jsonl (those beside them)."""
    out = [json.loads(line) for line in (DIRECTORY / name).read_text().splitlines()]
    for r in out:
        for key in ("raw", "body"):
            if isinstance(r.get(key), list):
                r[key] = joined(r[key])
    return out


GIVEN = rows("cases.jsonl")
ALL = GIVEN + rows("neighbours.jsonl")
