"""Several gateway processes of one service on one port: what each is made of, and who starts, asks and ends them.

The first process is the service as it is alone, with Triton and the admin plane. It starts the further ones, which
answer robots beside it. Owns no names of its own.
"""
