"""Pages of the site that are made from the code: `python docgen` writes the one that is kept in docs/.

`pages` is all of them, by their place in the site; `hook` hands them to MkDocs. `methods` makes a page of every
registered strategy, `reference` one of every public module, `commands` the reference of the command line, and
`included` takes over pages that stand elsewhere in the repository. Nothing here needs MkDocs but the hook.
"""
