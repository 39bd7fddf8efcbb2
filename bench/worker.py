"""One side of a comparison of revisions: measures what it is told to, line by line, on its standard streams."""

import json
import os
import sys
from typing import Any

import torch

from bench.cases import Built, Case, Options
from bench.measure import seconds_of, warm_up


def serve(suite: Any, options: Options) -> None:
    """Answers one JSON object a line: {"case": i} -> {"variants": {name: calls}}, {"time": name} -> {"seconds": s}.

    A case that cannot run here is answered with {"error": ...}, and the end of the cases with {"variants": null}.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what others print must not come between
    cases: list[Case] = list(suite.cases(options))
    built = Built({})
    calls: dict[str, int] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any]
        if "case" in asked:
            built = Built({})  # before the next one: two may not fit
            answer, built, calls = _begin(cases, asked["case"], options)
        else:
            name = asked["time"]
            answer = {"seconds": seconds_of(built.variants[name], calls[name], options.device)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _begin(cases: list[Case], number: int, options: Options) -> tuple[dict[str, Any], Built, dict[str, int]]:
    if number >= len(cases):
        return {"variants": None}, Built({}), {}
    case = cases[number]
    torch.manual_seed(0)
    try:
        made = case.build()
        built = Built({name: call for name, call in made.variants.items() if name in case.own})
        calls = {name: warm_up(call, options.device) for name, call in built.variants.items()}
    except Exception as error:  # another revision may have another interface: then there is nothing to compare
        return {"facts": dict(case.facts), "error": f"{type(error).__name__}: {error}"}, Built({}), {}
    return {"facts": dict(case.facts), "variants": calls}, built, calls
