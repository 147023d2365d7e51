"""The page and the HTTP interface, ``e3d app``; needs the extra ``app``.

Requests (:mod:`.api`, :mod:`.page`) become jobs in a queue (:mod:`.jobs`), on which a process of its own works, one at
a time (:mod:`.worker`). Only that process has the models, so the page is there at once, and a job that does not stop
can be ended with its process.
"""
