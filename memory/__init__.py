"""The modules behind the scripts. Data flows one way: tree, tokens, weights, text."""
