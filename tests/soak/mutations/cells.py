"""Wrong derivatives of cells in Python."""

from soak.mutations.mutation import Mutation

FULL = ("test_through_time.py::test_full_is_autograd_over_the_whole_sequence",)
OWN = ("cells/test_own.py::test_a_cells_own_derivative_is_autograds_of_its_step",)
SECOND = "        i_f, g, o, tanh_c = tape.kept\n        H = dh.shape[-1]\n"

MUTATIONS = (
    Mutation(
        "cells/rnn.py",
        "return 1 - h * h",
        "return 1 - h",
        "tanh' is 1 - h",
        FULL,
    ),
    Mutation(
        "cells/rnn.py",
        "(h > 0).to(h.dtype)",
        "(h >= 0).to(h.dtype)",
        "a rectifier is on at its kink, and where it is off",
        ("test_through_time.py::test_a_rectifier_at_its_kink_is_off_as_in_torch_nn",),
    ),
    Mutation(
        "cells/gru.py",
        "delta_n = dh * (1 - z) * (1 - n * n)",
        "delta_n = dh * (1 - n * n)",
        "the candidate's error lacks 1 - z",
        FULL,
    ),
    Mutation(
        "cells/gru.py",
        "delta_n = dh * (1 - z) * (1 - n * n)",
        "delta_n = dh * z * (1 - n * n)",
        "the candidate's error has z for 1 - z",
        FULL,
    ),
    Mutation(
        "cells/gru.py",
        "delta_n * gh_n * (r * (1 - r))",
        "delta_n * h_prev * (r * (1 - r))",
        "the reset gate is taken to scale h_{t-1}",
        FULL,
    ),
    Mutation(
        "cells/gru.py",
        "dh * (h_prev - n) * (z * (1 - z))",
        "dh * (n - h_prev) * (z * (1 - z))",
        "the update gate's error has the wrong sign",
        FULL,
    ),
    Mutation(
        "cells/gru.py",
        "torch.addcmul(self.hidden_delta(delta, tape) @ W, dh, z)",
        "torch.addcmul(self.hidden_delta(delta, tape) @ W, dh, r)",
        "r lets the state's error through, not z",
        FULL,
    ),
    Mutation(
        "cells/gru.py",
        "torch.addcmul(self.hidden_delta(delta, tape) @ W, dh, z)",
        "torch.addcmul(delta @ W, dh, z)",
        "the error reaches h_{t-1} past the reset gate",
        FULL,
    ),
    Mutation(
        "cells/lstm.py",
        SECOND + "        i, f = i_f[..., :H], i_f[..., H:]",
        SECOND + "        f, i = i_f[..., :H], i_f[..., H:]",
        "on the way back i and f are swapped",
        FULL,
    ),
    Mutation(
        "cells/lstm.py",
        "dc = torch.addcmul(dc, dh * o, 1 - tanh_c * tanh_c)",
        "dc = dc + dh * o",
        "the cell's error lacks tanh'",
        FULL,
    ),
    Mutation(
        "cells/lstm.py",
        "dc * tape.before[1] * (f * (1 - f))",
        "dc * tape.after[1] * (f * (1 - f))",
        "the forget gate's error is made with c_t, not c_{t-1}",
        FULL,
    ),
    Mutation(
        "cells/lstm.py",
        "(delta @ W, dc * f)",
        "(delta @ W, dc * i)",
        "the cell's error goes back through i, not f",
        FULL,
    ),
    Mutation(
        "cells/lstm.py",
        "dh * tanh_c * (o * (1 - o))",
        "dh * tape.after[1] * (o * (1 - o))",
        "the output gate's error lacks the cell's tanh",
        FULL,
    ),
    Mutation(
        "cells/lstm.py",
        "dc * i * (1 - g * g)",
        "dc * i * (g * (1 - g))",
        "the candidate of the LSTM has the slope of a sigmoid",
        FULL,
    ),
    Mutation(
        "cells/peephole_lstm.py",
        "dc = torch.addcmul(dc + before_tanh(dh * o, tanh_c), d_o, p[2])",
        "dc = dc + before_tanh(dh * o, tanh_c)",
        "no error comes to the cell through the output gate's peephole",
        OWN,
    ),
    Mutation(
        "cells/peephole_lstm.py",
        "(of_o * tape.after[1]).sum(0)",
        "(of_o * c).sum(0)",
        "the output gate's peephole is taken to see c_{t-1}",
        OWN,
    ),
    Mutation(
        "cells/minimal_gated_unit.py",
        "torch.addcmul(dh - df_n, through_n, f)",
        "torch.addcmul(dh, through_n, f)",
        "the state's error lacks 1 - f",
        OWN,
    ),
    Mutation(
        "cells/linear_recurrence.py",
        "(deltas[0] * tape.before[0]).sum(0)",
        "(deltas[0] * tape.after[0]).sum(0)",
        "the decay's gradient is made with s_t, not s_{t-1}",
        OWN,
    ),
    Mutation(
        "cells/leaky_rate.py",
        "torch.add(delta @ weights[0], dh, alpha=1 - self.a)",
        "torch.add(delta @ weights[0], dh, alpha=self.a)",
        "the leak's share goes back, not what it leaves",
        OWN,
    ),
    Mutation(
        "cells/leaky_integrate_and_fire.py",
        "(delta @ weights[0] - delta, delta * self.a)",
        "(delta @ weights[0], delta * self.a)",
        "no error goes back through a spike's reset of the potential",
        OWN,
    ),
    Mutation(
        "cells/layer_norm_lstm.py",
        "dc = dc + _before_norm(dcell, tape.after[1], statistics[2:], cell_gain)[0]",
        "dc = dc + dcell",
        "the cell's error goes past its normalisation",
        OWN,
    ),
    Mutation(
        "cells/slopes.py",
        "ops.aten.sigmoid_backward.default(d, y)",
        "ops.aten.tanh_backward.default(d, y)",
        "gates of cells of one's own have the slope of a tanh",
        OWN,
    ),
)
