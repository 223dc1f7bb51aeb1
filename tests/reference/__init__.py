"""Published losses written out in plain torch, from their papers: the golden truth for compiled
objectives.

One file per objective, each with `loss(networks, data, draws, label, progress, ...)`, which returns
the value and one detached number per term. Nothing is shared, reordered or optimised: every network
call stands where the formula has it, and every derivative is one `torch.func.jvp` over the whole
batch. The README says where each formula is from.
"""
