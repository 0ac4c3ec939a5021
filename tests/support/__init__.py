"""What tests stand on. Holds no test.

tiny, zoo, family_models, timm_models   tiny random models: a few, every family and head, timm's
sentences, trained                      models with tokenizers; the BERT that `make fetch` brings
growths, golden                         growths that many tests do, and the digests of some
family_edits                            family files with one thing changed
headers, raw_checkpoints, shards        checkpoints without a model: headers, bytes, a layout
calls                                   what a call costs, counted
processes, full_disk, unprivileged      growkit watched and killed, on full and on forbidden disks
hostile                                 the command line under limits, on damaged input
hub_server, hub_cas, hub_client         a Hub on this machine, and somebody who uses it
pages, pipelines_page, pictured         pages walked as a reader does; plans that are pictured
packages, lowest                        packages that only some tests need; floors of versions
reached                                 which files of an installed growkit a run reaches
families_table, reference               pages made anew by targets of make
"""
