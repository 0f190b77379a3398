"""The former place of Hydra's entry point, which is `python -m holdfast.compat.hydra_main` now."""

import warnings

from holdfast.compat.hydra_main import main

if __name__ == "__main__":
    warnings.warn(
        "holdfast.experiments is called holdfast.runs now, and Hydra's entry point has moved. "
        "Write python -m holdfast.compat.hydra_main.",
        DeprecationWarning,
        stacklevel=1,
    )
    main()
