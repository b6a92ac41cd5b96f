"""How the networks of a stage are composed in one forward pass. `side_by_side` is the usual way;
`scene` says what a forward is given and gives."""
