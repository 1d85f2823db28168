"""The overrides of a job, derived from the command of its sweep. No torch."""

import itertools
from collections.abc import Sequence


def of_job(arguments: Sequence[str], number: str) -> list[str]:
    """The overrides of job ``number`` in a sweep of Hydra's own launcher, which numbers all combinations of the values.

    Returns:
        An empty list if ``number`` is not a number, or there is no such combination.
    """
    typed = [argument for argument in arguments if not argument.startswith("-")]
    if len(typed) == len(arguments):
        return list(typed)  # a single run
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        overrides = OverridesParser.create().parse_overrides([one for one in typed if not one.startswith("hydra.")])
    except HydraException:
        return []
    choices = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [str(one.input_line)]
        for one in overrides
    ]
    product = [list(job) for job in itertools.product(*choices)]
    return product[int(number)] if number.isdigit() and int(number) < len(product) else []
