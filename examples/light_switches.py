"""A text game for Gymnasium. It does not import polyturn."""

import gymnasium as gym


class LightSwitches(gym.Env):
    """Walk past five lamps, see one at a time, and switch on the three that are off."""

    action_space = observation_space = gym.spaces.Text(max_length=80)
    lamps = ("red", "green", "blue", "white", "yellow")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.at, self.off = 0, self.np_random.choice(self.lamps, size=3, replace=False).tolist()
        return f"Make all lamps shine. {self.look()}", self.info()

    def step(self, action):
        self.at = (self.at + (action == "walk on")) % len(self.lamps)
        if found := action == "flip the switch" and self.lamps[self.at] in self.off:
            self.off.remove(self.lamps[self.at])
        return self.look(), found / 3, not self.off, False, self.info()

    def look(self):
        return f"The {self.lamps[self.at]} lamp is {'off' if self.lamps[self.at] in self.off else 'on'}."

    def info(self):
        return {"admissible": ["walk on", "flip the switch"], "success": not self.off}


gym.register("LightSwitches-v0", LightSwitches, max_episode_steps=8)
