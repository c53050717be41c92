"""From a model to a compiled one: the public functions, the Dynamo backend, the ordered passes, the next compiler."""
