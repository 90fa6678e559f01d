"""The modules behind the scripts. Data flows one way: tree, tokens, weights, text."""
import sys


def end(kind, error, trace):
    """Says what ended Python. Ctrl-C while a script loads its modules, which takes seconds, is one word."""
    if issubclass(kind, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = end
