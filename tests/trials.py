"""Runs an experiment in this process, as it is or sabotaged."""

import _experiment


def claims(module, *options):
    """Return whether each claim holds: {claim: bool}."""
    parser = _experiment.options_of(module.__doc__, module.__name__, module.add_options)
    results = module.measure(parser.parse_args(options))
    assert results["claims"], "an experiment without claims"
    return {claim["claim"]: claim["holds"] for claim in results["claims"]}


def failing(module, *options):
    """Return the claims that do not hold."""
    return [claim for claim, holds in claims(module, *options).items() if not holds]
