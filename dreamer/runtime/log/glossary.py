"""The meaning of every metric that a run logs, and what a healthy run shows. Imports no jax.

`dreamer metrics` prints it, and the page on metrics in the documentation is generated from it.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

from dreamer.errors import UserError, nearest


class Metric(NamedTuple):
    """One metric, or all metrics whose names match a pattern.

    name: its name in metrics.jsonl, or an fnmatch pattern such as "loss/rec/*" | meaning: what it is, with its unit
    healthy: what a healthy run shows | group: the heading under which it is listed
    """

    name: str
    meaning: str
    healthy: str
    group: str


PROGRESS = (
    Metric(
        "env_steps",
        "Environment steps so far, all environments together. It is the x-axis of every curve. In a run that learns "
        "from data only, it counts updates.",
        "Grows until it reaches the env_steps of the configuration, or its updates.",
        "Progress",
    ),
    Metric(
        "updates",
        "Gradient steps so far.",
        "Stays 0 until the replay holds enough rows for a batch; then it grows by replay_ratio / (batch_size * "
        "batch_length) for each environment step.",
        "Progress",
    ),
    Metric("time", "Seconds of training so far, without the time between a stop and a resume.", "Grows.", "Progress"),
)
EPISODES = (
    Metric(
        "episode/return",
        "Sum of the rewards of an episode: the mean over the training episodes that ended since the previous line. "
        "Actions are sampled, so the score is often a little lower than that of an evaluation.",
        "Rises, usually in jumps. A line without it means that no episode has ended since the previous line.",
        "Episodes",
    ),
    Metric(
        "episode/length",
        "Environment steps of an episode, averaged as episode/return. The reset does not count.",
        "Depends on the task: it grows where the agent must survive, and falls where it must reach a goal.",
        "Episodes",
    ),
    Metric(
        "episode/*",
        "A number that the environment itself reports on an episode: a number in the info of the last step, or the "
        "mean and the maximum of an observation key log/... over the episode.",
        "Defined by the environment.",
        "Episodes",
    ),
    Metric(
        "eval/return",
        "Mean return of the episodes of one evaluation, played by the newest parameters in fresh environments.",
        "Rises with episode/return. Evaluation actions are chosen as eval.mode says.",
        "Evaluation",
    ),
    Metric(
        "eval/return_std",
        "Standard deviation of the returns of one evaluation, over its episodes.",
        "Small beside eval/return once a task is solved. A large value means that some episodes still fail.",
        "Evaluation",
    ),
    Metric("eval/length", "Mean environment steps of an evaluation episode.", "As episode/length.", "Evaluation"),
    Metric(
        "eval/*",
        "A number that the environment itself reports on an episode, averaged over the episodes of one evaluation.",
        "Defined by the environment.",
        "Evaluation",
    ),
)
LOSSES = (
    Metric(
        "loss/dyn",
        "Dynamics loss in nats: KL divergence from the posterior to the prior, at least free_nats per time step. Its "
        "gradient trains the prior to predict the posterior.",
        "Falls within the first thousand updates and levels off above free_nats (1 by default). A value of exactly "
        "free_nats means that it no longer trains anything: normal for an easily predicted task, else a sign that the "
        "latents hold too little.",
        "Losses",
    ),
    Metric(
        "loss/rep",
        "Representation loss in nats: the same KL divergence as loss/dyn, with its gradient into the posterior "
        "instead of the prior.",
        "Always equal to loss/dyn: only the gradients differ.",
        "Losses",
    ),
    Metric(
        "loss/rec/*",
        "Reconstruction loss of one observation key, summed over its elements: squared error of images with values "
        "from 0 to 1, squared error of symlog values for vectors, cross-entropy in nats for classes.",
        "Falls fast at first, then slowly. It rises for a while when the agent reaches new parts of the environment.",
        "Losses",
    ),
    Metric(
        "loss/rew",
        "Reward loss in nats: cross-entropy of the two-hot encoded reward.",
        "Starts at ln(bins), 5.54 for 255 bins, and falls quickly towards 0, the faster the rarer rewards are.",
        "Losses",
    ),
    Metric(
        "loss/con",
        "Continue loss in nats: binary cross-entropy of whether the episode goes on after a step.",
        "Falls to about 0.02, not to 0: with contdisc and a horizon of 333 the target is 0.997, and its entropy 0.02.",
        "Losses",
    ),
    Metric(
        "loss/mask",
        "Action mask loss in nats: binary cross-entropy of which actions are allowed, summed over the actions. Only in "
        "environments with action masks.",
        "Falls towards 0.",
        "Losses",
    ),
    Metric(
        "loss/positive",
        "Energy between the predicted and the true next state of the objects. Only with the contrastive world model.",
        "Falls towards 0. If loss/negative stays near 1 meanwhile, all states are the same and nothing is learned.",
        "Losses",
    ),
    Metric(
        "loss/negative",
        "How far the states of other transitions of the batch lie within the hinge, as an energy. Only with the "
        "contrastive world model.",
        "Falls from about 1 (agent.world_model.hinge) to a small rest: some of the others are the same state.",
        "Losses",
    ),
    Metric(
        "loss/policy",
        "Actor loss: minus the log-probability of the dreamed actions times their advantage, minus the weighted "
        "entropy of the policy.",
        "Fluctuates around 0 and has no trend: it does not measure how good the policy is.",
        "Losses",
    ),
    Metric(
        "loss/value",
        "Critic loss in nats on dreamed states: cross-entropy of the two-hot encoded lambda-return, plus slow_scale "
        "times the cross-entropy of the slow critic's value.",
        "At most about 11, twice ln(255). It first rises with dream/weight, then falls, and rises again while the "
        "returns improve, as the targets move.",
        "Losses",
    ),
    Metric(
        "loss/repval",
        "Critic loss in nats on replayed states, bootstrapped with dreamed returns. Its gradient also reaches the "
        "world model.",
        "Starts near 11, twice ln(255), and falls. It rises again while the returns improve, as the targets move.",
        "Losses",
    ),
    Metric(
        "loss/ens",
        "Loss of the ensemble behind the actor-critic's penalty: how badly its members predict the next features, "
        "summed over members and features.",
        "Falls fast, then follows the features as they change. Its floor is members * features / 2 * log(2 pi).",
        "Losses",
    ),
    Metric(
        "loss/clone",
        "Negative log-likelihood of the actions in the data under the cloned policy; rows without an action count 0.",
        "Falls to the entropy of the policies that collected the data: 0 for a single deterministic one, log(n) for "
        "random choices among n.",
        "Losses",
    ),
    Metric(
        "clone/agreement",
        "Share of the choices in the data that are the cloned policy's most likely ones.",
        "Rises; 1 for one deterministic policy, lower where several policies or random actions are mixed.",
        "Losses",
    ),
    Metric(
        "clone/error",
        "Mean distance between the numbers of an action in the data and the cloned policy's most likely ones.",
        "Falls.",
        "Losses",
    ),
    Metric(
        "clone/entropy",
        "Entropy of the cloned policy in the rows of the data, in nats.",
        "Falls towards the entropy of the policies that collected the data.",
        "Losses",
    ),
    Metric(
        "loss/kl",
        "KL loss of the autoencoder of vae_mdn_rnn in nats: KL divergence from the code of an image to a standard "
        "normal, at least kl_tolerance times the width of the code.",
        "At its floor at first, then above it, as the codes begin to differ. 0 in other phases than the first.",
        "Losses",
    ),
    Metric(
        "loss/mdn",
        "Loss of the mixture density of vae_mdn_rnn in nats: negative log-likelihood of the next code, averaged over "
        "its numbers.",
        "Begins near 1.4, the entropy of a standard normal, and falls; it may become negative. 0 in other phases than "
        "the second.",
        "Losses",
    ),
    Metric(
        "loss/done",
        "Loss of the done logit of vae_mdn_rnn in nats: binary cross-entropy, 10 times as heavy where an episode ends.",
        "Falls as far as the end of an episode can be foreseen. 0 in other phases than the second.",
        "Losses",
    ),
    Metric(
        "loss/goal",
        "Loss of Director's goal autoencoder on replayed states: goal/rec plus goal/kl_weight times goal/kl.",
        "Falls, and rises again where the agent finds new states.",
        "Losses",
    ),
    Metric(
        "loss/manager",
        "Loss of Director's manager: minus the log-probability of the chosen codes times their normalised advantage, "
        "minus the weighted entropy.",
        "Large and negative until manager/entropy_weight has fallen, then around 0 and without a trend.",
        "Losses",
    ),
    Metric(
        "loss/worker",
        "Loss of Director's worker: minus the log-probability of the dreamed actions times their normalised advantage, "
        "minus the weighted entropy.",
        "As loss/manager.",
        "Losses",
    ),
    Metric(
        "loss/value/*",
        "Loss of one of Director's critics, on dreams: extrinsic and exploration of the manager, and worker. Squared "
        "error of the symlog of the returns, or nats with critic: twohot.",
        "Falls while the slow critic stays, and jumps when it moves.",
        "Losses",
    ),
    Metric(
        "loss/*",
        "A loss of a world model or behavior of your own: its mean over the batch, before its scale.",
        "Defined by the model. It should fall or level off, and never be nan.",
        "Losses",
    ),
)
LATENTS = (
    Metric(
        "latent/kl",
        "KL divergence in nats from the posterior to the prior, summed over the groups of the stochastic state and not "
        "clipped: how much an observation tells beyond the prediction.",
        "Levels off between about 1 and a few tens. Below free_nats the world model predicts nearly everything.",
        "Latents of the world model",
    ),
    Metric(
        "latent/prior_entropy",
        "Entropy in nats of the world model's prediction of the stochastic state, summed over its groups; with "
        "categorical latents at most stoch * ln(classes). It is not the entropy of the policy.",
        "Falls as the world model becomes certain of what comes next. At its maximum, the prior predicts nothing.",
        "Latents of the world model",
    ),
    Metric(
        "latent/post_entropy",
        "Entropy in nats of the stochastic state after the observation, with the same maximum as "
        "latent/prior_entropy. It is not the entropy of the policy.",
        "Usually below latent/prior_entropy, since an observation adds certainty.",
        "Latents of the world model",
    ),
)
DREAMS = (
    Metric(
        "dream/action_entropy",
        "Entropy in nats of the policy in dreamed states, summed over the parts of an action. For continuous actions "
        "it is a differential entropy and may be negative.",
        "Starts near dream/action_entropy_max and falls as the policy becomes certain. If it stays at the maximum, the "
        "actor does not learn. If it is near 0 early on, a discrete policy no longer explores.",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/action_entropy_max",
        "The largest entropy that the policy could have in the same states: all allowed classes equally likely, and "
        "the largest standard deviation of continuous actions.",
        "Constant, except where the action masks change.",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/reward",
        "Predicted reward per dreamed step.",
        "Approaches the mean reward of real steps, and rises with the return.",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/cont",
        "Predicted probability that the episode goes on after a dreamed step; with contdisc it includes the discount.",
        "Near 1 - 1 / horizon (0.997) where episodes rarely end.",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/weight",
        "Weight of the dreamed states in the losses: the product of dream/cont up to each of them.",
        "Slightly below dream/cont: 0.98 for 15 steps without an end. Lower where dreams often reach the end.",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/return",
        "Lambda-return of dreamed states: discounted rewards of the dream, with the critic's value beyond it.",
        "Rises with the real return. Compare its trend, not its size: it is discounted and starts anywhere in an "
        "episode.",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/value",
        "Value that the critic gives to dreamed states.",
        "Close to dream/return. A lasting gap means that the critic lags behind.",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/slow_value",
        "Value of the slow critic, a moving average of the critic's parameters.",
        "Follows dream/value.",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/target",
        "What the critic is trained on: the lambda-return, normalised by value_norm.",
        "Equal to dream/return unless value_norm is set.",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/return_scale",
        "The number by which advantages are divided. With return_norm percentiles: the moving average of the spread "
        "from the 5th to the 95th percentile of the returns, at least 1.",
        "Stays 1 while returns are small or sparse, then grows with them.",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/return_normed",
        "Mean of the returns after normalisation: minus the 5th percentile, divided by dream/return_scale.",
        "Between 0 and 1 most of the time.",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/return_normed_min",
        "Smallest normalised return of the batch.",
        "Slightly below 0. A large negative value marks rare, very bad states.",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/return_normed_max",
        "Largest normalised return of the batch.",
        "1 to a few. A large value marks rare, very good states.",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/return_rate",
        "Share of normalised returns with a magnitude of 1 or more.",
        "About 0.05 once dream/return_scale exceeds 1, and 0 before.",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/disagreement",
        "Disagreement of the ensemble about dreamed steps, on average.",
        "Comes down to a few times ensemble/disagreement. Growing far above it, the actor leaves the data.",
        "Dreams",
    ),
    Metric(
        "ensemble/disagreement",
        "Disagreement of the ensemble about steps of the data, on average: the size of what is well known.",
        "Falls, and stays below dream/disagreement.",
        "Dreams",
    ),
    Metric(
        "dream/penalty",
        "What the penalty takes from each dreamed reward, on average.",
        "Of the order of dream/reward. Far above it, the actor learns to avoid uncertainty only.",
        "Dreams",
    ),
    Metric(
        "dream/adv",
        "Mean advantage of the dreamed actions: return minus value, divided by dream/return_scale.",
        "Near 0. A lasting offset means that the critic is too low (positive) or too high (negative).",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/adv_std",
        "Standard deviation of the advantages.",
        "Well above 0 and usually below 1: it is the signal that the actor learns from.",
        "Dreams of the actor and critic",
    ),
    Metric(
        "dream/adv_mag",
        "Mean magnitude of the advantages.",
        "As dream/adv_std. Near 0, the actor receives no signal: no action is better than another in dreams.",
        "Dreams of the actor and critic",
    ),
)
DIRECTOR = (
    Metric(
        "goal/rec",
        "Squared error of the goal autoencoder, summed over the numbers of a state.",
        "Falls far below its first values; high errors mark states that are new.",
        "Director",
    ),
    Metric(
        "goal/kl",
        "Information in nats that the code of a state carries: its KL divergence to equally likely classes.",
        "Settles near kl_target. Far below it, all states have the same code.",
        "Director",
    ),
    Metric(
        "goal/kl_weight",
        "Weight of goal/kl in loss/goal, which adapts to kl_target.",
        "Begins at 1 and falls by a tenth per update while goal/kl is too small, to 1e-5 at least.",
        "Director",
    ),
    Metric(
        "manager/reward_extrinsic",
        "Reward of the environment for the manager: its mean over a block of dreamed steps.",
        "0 until the agent has found a reward, then it rises.",
        "Director",
    ),
    Metric(
        "manager/reward_exploration",
        "Reward for new states: the mean squared error of the goal autoencoder in dreamed states.",
        "Falls as states become known, and rises where the agent finds others.",
        "Director",
    ),
    Metric(
        "manager/return_*",
        "Lambda-return of the manager for one of its rewards; its discount is one per block.",
        "Follows its reward.",
        "Director",
    ),
    Metric(
        "manager/entropy",
        "Entropy of the manager's codes, relative to the largest.",
        "Begins near 1 and settles near the setting manager_entropy.",
        "Director",
    ),
    Metric(
        "manager/entropy_weight",
        "Weight of the manager's entropy, averaged over the one-hots of a code; each adapts on its own.",
        "Begins at 1, falls by a tenth per update while the entropy is too large, and rises again later.",
        "Director",
    ),
    Metric(
        "worker/reward",
        "Max-cosine similarity of dreamed states and the worker's goal, from -1 to 1.",
        "Near 1 before the model tells states apart; it then falls, and rises as the worker learns.",
        "Director",
    ),
    Metric(
        "worker/return",
        "Lambda-return of the worker for the goal at hand.",
        "Follows worker/reward.",
        "Director",
    ),
    Metric(
        "worker/reached",
        "Share of dreamed blocks that end with a worker/reward above 0.7.",
        "Rises as the worker learns to reach goals.",
        "Director",
    ),
    Metric(
        "worker/entropy",
        "Entropy of the worker, from 0 for the smallest that it can have to 1 for the largest.",
        "Begins near 1 and settles near the setting worker_entropy.",
        "Director",
    ),
    Metric(
        "worker/entropy_weight",
        "Weight of the worker's entropy, which adapts to worker_entropy.",
        "As manager/entropy_weight.",
        "Director",
    ),
)
EVOLUTION = (
    Metric(
        "evolution/generation",
        "Generations of CMA-ES so far, of the behavior controller. Each is one update.",
        "0 while the world model learns, then it grows with the updates.",
        "Evolution",
    ),
    Metric(
        "evolution/fitness",
        "Mean fitness of the population: the sum of rewards in a dream, averaged over the dreams of each candidate.",
        "Rises. It is that of the dream: compare it with episode/return or eval/return, which are those of the "
        "environment. If it is far above them, the controller exploits the dream, and a higher temperature helps.",
        "Evolution",
    ),
    Metric("evolution/fitness_best", "Fitness of the best candidate.", "Rises.", "Evolution"),
    Metric("evolution/fitness_worst", "Fitness of the worst candidate.", "Rises, less steadily.", "Evolution"),
    Metric(
        "evolution/fitness_std",
        "Standard deviation of the fitness over the population.",
        "Above 0: a population without differences cannot be selected from.",
        "Evolution",
    ),
    Metric(
        "evolution/length",
        "Steps of a dream until its end, averaged over the population; dream_length at most.",
        "Depends on the task: it grows where the agent must survive.",
        "Evolution",
    ),
    Metric(
        "evolution/std",
        "Step size of CMA-ES, which scales the deviations of the population.",
        "Begins at the setting std and falls slowly; it may rise while the mean moves in one direction.",
        "Evolution",
    ),
)
OPTIMIZER = (
    Metric(
        "train/phase",
        "What learns, in a run of vae_mdn_rnn: 1 the autoencoder, 2 the recurrent network, 3 the behavior.",
        "Rises from 1 to 3. A line that covers two phases shows a number between them.",
        "Optimizer",
    ),
    Metric(
        "train/loss",
        "The sum of all losses times their scales: what an update minimises.",
        "Falls at first, then follows loss/rec and the critic. It does not measure how good the agent is.",
        "Optimizer",
    ),
    Metric(
        "train/grad_norm",
        "Norm of the gradient of all parameters, before clipping.",
        "Finite, without a lasting rise. Single peaks are harmless, as each tensor is clipped relative to its size. "
        "Large images mean large norms.",
        "Optimizer",
    ),
    Metric(
        "train/grad_rms",
        "Root mean square of the gradient over all parameters, before clipping.",
        "As train/grad_norm, comparable between model sizes.",
        "Optimizer",
    ),
    Metric(
        "train/update_rms",
        "Root mean square of the change that an update makes to the parameters.",
        "Below the learning rate, and nearly constant after the warm-up.",
        "Optimizer",
    ),
    Metric(
        "train/update_max",
        "Largest change of a single parameter in an update.",
        "Up to some tens of the learning rate, after the warm-up without a trend.",
        "Optimizer",
    ),
    Metric(
        "train/param_rms",
        "Root mean square of all parameters after the update.",
        "Grows slowly. A sudden jump marks a harmful update.",
        "Optimizer",
    ),
    Metric(
        "train/learning_rate",
        "Step size of the optimizer.",
        "Rises from 0 during the warm-up, then follows the schedule; constant by default.",
        "Optimizer",
    ),
    Metric(
        "train/learning_rate/*",
        "Step size of an optimizer from agent.optimizers, by the prefix of its parameters.",
        "As train/learning_rate.",
        "Optimizer",
    ),
)
SPEED = (
    Metric(
        "speed/env_steps_per_s",
        "Environment steps per second since the previous line, including time for evaluations and checkpoints.",
        "Steady after compilation. With a high replay ratio it is set by speed/updates_per_s.",
        "Speed",
    ),
    Metric("speed/updates_per_s", "Updates per second since the previous line.", "Steady after compilation.", "Speed"),
    Metric(
        "speed/env_frames",
        "Frames of the simulator so far: env_steps times action_repeat. Papers on Atari count these.",
        "Grows with env_steps.",
        "Speed",
    ),
    Metric(
        "wait/collector_for_envs",
        "Share of the time in which acting waits for the environments to step.",
        "Small. Near 1 the environments are the bottleneck: more of them, or more processes, help.",
        "Waiting",
    ),
    Metric(
        "wait/collector_for_learner",
        "Share of the time in which acting waits for training, to keep the replay ratio. 0 if they take turns.",
        "Near 1 when training is the bottleneck, as usual with large models; faster environments do not help then.",
        "Waiting",
    ),
    Metric(
        "wait/learner_for_rows",
        "Share of the time in which training waits for new rows, to keep the replay ratio. 0 if they take turns.",
        "Near 0 when training is the bottleneck. Near 1 when the environments are: more of them help.",
        "Waiting",
    ),
    Metric(
        "wait/device_for_learner",
        "Share of the time in which no update is in flight on the device, as far as the host sees it; with the loop on "
        "the device, no turns. Evaluations do not count.",
        "Near 0 when training is the bottleneck. A high value with a low wait/learner_for_rows means that the host is "
        "too slow for the device.",
        "Waiting",
    ),
    Metric(
        "collect/ready",
        "Environments that act together in one turn, on average; with several agents, the rows of all of them.",
        "Near the number of environments. Fewer where their speeds differ (workers.min_ready, workers.max_wait).",
        "Collecting",
    ),
    Metric(
        "collect/staleness",
        "Number of updates that the acting parameters are behind the newest ones.",
        "0 if acting and training take turns, else about 1 or less.",
        "Collecting",
    ),
    Metric(
        "collect/incidents",
        "Environments that crashed, hung or broke the rules and were replaced, since the process started.",
        "0. Each incident is also printed as a line that names the environment and the reason.",
        "Collecting",
    ),
    Metric(
        "data/return_best",
        "Return of the best whole episode in the datasets of the run, one number for the whole run.",
        "Constant. Evaluations of an agent that learns from data only are held against it.",
        "Replay",
    ),
    Metric(
        "data/return_mean",
        "Mean return of the whole episodes in the datasets of the run.",
        "Constant. Behaviour cloning reaches about as much; an agent that uses rewards should reach more.",
        "Replay",
    ),
    Metric("data/episodes", "Episodes in the datasets of the run, unfinished ones included.", "Constant.", "Replay"),
    Metric("data/rows", "Rows in the datasets of the run.", "Constant.", "Replay"),
    Metric(
        "replay/rows",
        "Rows that the replay holds.",
        "Grows with env_steps up to the capacity, then stays there.",
        "Replay",
    ),
)
SHORT = {"env_steps/s": "speed/env_steps_per_s", "updates/s": "speed/updates_per_s"}  # as the terminal shows them
METRICS: tuple[Metric, ...] = (
    *PROGRESS, *EPISODES, *LOSSES, *LATENTS, *DREAMS, *DIRECTOR, *EVOLUTION, *OPTIMIZER, *SPEED
)  # fmt: skip


def entry_of(name: str) -> Metric | None:
    """Returns the entry for the metric `name`, or None if no entry matches.

    An entry with exactly this name is preferred; else the longest pattern that matches the name.
    """
    matching = [metric for metric in METRICS if fnmatchcase(name, metric.name)]
    return max(matching, key=lambda metric: (metric.name == name, len(metric.name)), default=None)


def explain(name: str) -> list[Metric]:
    """Returns the entries that explain `name`, in the order of METRICS.

    name: the name of a metric ("loss/rec/image"), a pattern ("dream/*"), a part of names between slashes ("wait",
    "grad_norm"), or a rate as on the terminal ("updates/s"). Raises UserError, with a hint, if nothing matches.
    """
    name = SHORT.get(name, name)
    if "*" in name:
        found = [metric for metric in METRICS if fnmatchcase(metric.name, name)]
    elif entry := entry_of(name):
        found = [entry]
    else:
        found = [metric for metric in METRICS if name.strip("/") in metric.name.split("/")]
    if not found:
        names = {part for metric in METRICS for part in (metric.name, *metric.name.split("/"))} - {"*"}
        close = nearest(name, names)
        hint = close if "did you mean" in close else "; dreamer metrics lists them all"
        raise UserError(f"there is no metric {name!r}{hint}")
    return found
