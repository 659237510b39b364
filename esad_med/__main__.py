"""`python -m esad_med` is `esad-med`; `torchrun -m esad_med train` starts it once per rank."""

from esad_med.cli import main

main()
