"""`python -m vaegap` is the command `vaegap`."""

from vaegap.lab.cli import app

app(prog_name="vaegap")
