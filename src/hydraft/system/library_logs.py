"""What libraries print when they are imported. No torch."""

import logging


def quiet_bitsandbytes() -> None:
    """Keep bitsandbytes from reporting, as it is imported, that an optional CPU kernel is missing: no rank has a log by then."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
