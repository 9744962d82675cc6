"""`python -m hf_distill` is `hf-distill`."""

from hf_distill.cli.main import main

if __name__ == "__main__":
    main()
