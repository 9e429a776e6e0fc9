"""The lab: data sets, training, run records, grids and the command line, on top of the science in `vaegap`.

Modules here read and write files; nothing in the science half imports them.
"""
