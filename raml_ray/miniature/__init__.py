TWIN = "raml_twin"
"""The architecture of the miniature's twins, by a name that no other program knows: none takes one for a softmax policy."""
