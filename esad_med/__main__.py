"""`python -m esad_med` is `esad-med`; `torchrun -m esad_med train` starts it once per rank."""

from esad_med.cli import main

if __name__ == "__main__":  # a process beside the command imports this module
    main()
