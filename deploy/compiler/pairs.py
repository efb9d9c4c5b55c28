"""Which layers share a function: a 1x1 convolution and the depthwise one that alone reads it, where the image between
them would not stay in cache (kerf.kernels.cpu.expand_depthwise).
"""

from __future__ import annotations

from dataclasses import replace

from tvm.target import Target

from kerf.deploy.compiler.choice import Choice
from kerf.deploy.frontend.network import DOMAIN, Network
from kerf.kernels.cpu import conv2d_nchw_depthwise, expand_depthwise
from kerf.kernels.cpu.machine import machine_of


def join(network: Network, choices: dict[str, Choice], target: Target) -> tuple[dict[str, Choice], dict[str, str]]:
    """(choices with the configurations of pairs, name of a pair's first layer -> of its second).

    Pairs have their kernels' first configurations, whatever was best for either layer alone: in a pair the depthwise
    filter finds its image in the cache, and the first convolution shares it with that filter.
    """
    choices, pairs = dict(choices), {}
    own = [(part.graph, node) for part in network.own for node in part.graph.nodes if node.domain == DOMAIN]
    for graph, node in own:
        after = graph.sole_consumer(node.output[0])
        if after is None or after.domain != DOMAIN:
            continue
        first, second = choices[node.name], choices[after.name]
        if first.kernel not in expand_depthwise.FIRST or second.kernel != conv2d_nchw_depthwise.name:
            continue
        if expand_depthwise.refuses(first.problem, second.problem, machine_of(target)) is None:
            choices[node.name] = replace(first, config=expand_depthwise.config(first.problem, first.kernel, target))
            after_config = conv2d_nchw_depthwise.configs(second.problem, target)[0]
            choices[after.name] = replace(second, config=after_config)
            pairs[node.name] = after.name
    return choices, pairs
