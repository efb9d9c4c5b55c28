"""DDPG: an agent that walks through a network, takes one number in [0, 1] for every layer and is told at the end
how good they were.

Source: Lillicrap et al., "Continuous control with deep reinforcement learning", ICLR 2016, arXiv 1509.02971; sizes,
rates and noise are those of He et al., "AMC", ECCV 2018, arXiv 1802.03494 (github.com/mit-han-lab/amc). Everything is
drawn from one seed, on the CPU.
"""

import copy
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 300
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
TAU = 0.01  # how fast target networks follow
BATCH = 64
SIGMA = 0.5  # of the noise, after the warm-up
MEAN = 0.5  # decay of the rewards' moving mean, which is taken off them


class Walk(Protocol):
    """One action per layer, in order."""

    layers: int
    even: float  # the action that, taken everywhere, treats all layers alike

    def state(self, actions: Sequence[float]) -> Tensor:
        """(features,) of the layer whose turn it is, after these actions."""

    def allowed(self, actions: Sequence[float], action: float) -> float:
        """What is done in place of `action`, after these actions."""

    def reward(self, actions: Sequence[float]) -> tuple[float, list[float]]:
        """Of all actions together, and the actions that were carried out: what was asked for, brought to a budget."""


@dataclass(frozen=True)
class Numbers:
    """`warmup` episodes are random; then noise of σ = 0.5 · decay^(episode − warmup) is added."""

    episodes: int
    warmup: int
    decay: float
    replay: int  # transitions that are remembered, per layer

    def sigma(self, episode: int) -> float | None:
        return None if episode < self.warmup else SIGMA * self.decay ** (episode - self.warmup)


class Critic(nn.Module):
    """Q(s, a): a layer of the state plus one of the action, then two more."""

    def __init__(self, features: int):
        super().__init__()
        self.state, self.action = nn.Linear(features, HIDDEN), nn.Linear(1, HIDDEN)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return self.rest(self.state(state) + self.action(action))


def actor(features: int) -> nn.Module:
    """(n, features) -> (n, 1) in [0, 1]."""
    layers = nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
    return nn.Sequential(*layers, nn.Sigmoid())


def truncated_normal(mean: float, sigma: float, random: torch.Generator) -> float:
    """A draw from N(mean, σ²) given that it is in [0, 1]; `mean` is in it."""
    if sigma < 1e-6:  # the interval's share of the normal, both of its ends and the draw round to the same number
        return mean
    drawn = torch.empty(1, dtype=torch.double)
    return float(nn.init.trunc_normal_(drawn, mean, sigma, 0.0, 1.0, generator=random))


class Agent:
    def __init__(self, features: int, capacity: int, seed: int):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor, self.critic = actor(features), Critic(features)
        self.targets = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.learners = (
            torch.optim.Adam(self.actor.parameters(), ACTOR_RATE, fused=True),
            torch.optim.Adam(self.critic.parameters(), CRITIC_RATE, fused=True),
        )
        self.random = torch.Generator().manual_seed(seed)
        self.memory: deque[tuple[Tensor, ...]] = deque(maxlen=capacity)  # state, action, reward, next state, goes on
        self.mean: Tensor | None = None

    @torch.no_grad()
    def act(self, state: Tensor, sigma: float | None) -> float:
        """The actor's choice with noise; without σ a uniform draw."""
        if sigma is None:
            return float(torch.rand((), generator=self.random))
        return truncated_normal(float(self.actor(state[None])), sigma, self.random)

    def remember(self, states: Sequence[Tensor], actions: Sequence[float], reward: float) -> None:
        """An episode; every step of it gets its reward."""
        for i, (state, action) in enumerate(zip(states, actions)):
            goes_on = i + 1 < len(states)
            after = states[i + 1] if goes_on else torch.zeros_like(state)
            self.memory.append((state, *(torch.tensor([v]) for v in (action, reward)), after, torch.tensor([goes_on])))

    @torch.enable_grad()
    def learn(self) -> None:
        """One step of both networks; no discount (γ = 1)."""
        chosen = torch.randperm(len(self.memory), generator=self.random)[:BATCH].tolist()
        state, action, reward, after, goes_on = map(torch.stack, zip(*[self.memory[i] for i in chosen]))
        self.mean = reward.mean() if self.mean is None else torch.lerp(reward.mean(), self.mean, MEAN)
        with torch.no_grad():
            follow, judge = self.targets
            wanted = reward - self.mean + goes_on * judge(after, follow(after))
        by_actor, by_critic = self.learners
        by_critic.zero_grad()
        F.mse_loss(self.critic(state, action), wanted).backward()
        by_critic.step()
        by_actor.zero_grad()
        (-self.critic(state, self.actor(state)).mean()).backward()
        by_actor.step()
        with torch.no_grad():
            for target, network in zip(self.targets, (self.actor, self.critic)):
                torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), TAU)


def search(walk: Walk, numbers: Numbers, seed: int) -> tuple[list[float], float]:
    """Actions of the episode with the highest reward (of equal ones, the first), and that reward.

    The first episode treats all layers alike: a search, however short, finds nothing worse. It is the actions that were
    carried out that are remembered, with the states that they lead through: the reward is theirs.
    """
    agent = Agent(len(walk.state([])), numbers.replay * walk.layers, seed)
    best: tuple[list[float], float] | None = None
    for episode in range(numbers.episodes):
        actions = list[float]()
        for _ in range(walk.layers):
            drawn = agent.act(walk.state(actions), numbers.sigma(episode))
            actions.append(walk.allowed(actions, drawn) if episode else walk.even)
        reward, actions = walk.reward(actions)
        if best is None or reward > best[1]:
            best = actions, reward
        agent.remember([walk.state(actions[:i]) for i in range(walk.layers)], actions, reward)
        if episode >= numbers.warmup:
            for _ in actions:
                agent.learn()
    assert best is not None  # there is an episode at least
    return best
