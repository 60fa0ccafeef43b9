// Every kernel: its module (a file of csrc/kernels), its name, and the types of its arguments in order:
// i 32-bit integer, l 64-bit integer, f float, p pointer. launch() compares them with what it is given when it is
// compiled; a test compares them with the SPIR-V.
#pragma once

// clang-format off
#define DSK_KERNELS(row)                                             \
  row(optim, adam, "iiiiiilppppppffffffffillll")                     \
  row(optim, adagrad, "iiiilpppppfffilll")                           \
  row(optim, lion, "iiiilpppppffffffilll")                           \
  row(optim, sgd, "iiiiiilpppppffffilll")                            \
  row(sums, squares, "ilpp")                                         \
  row(sums, add_squares, "lpp")                                      \
  row(norm, rms_norm_forward, "iifllpppppp")                         \
  row(norm, rms_norm_backward, "iillpppppp")                         \
  row(norm, layer_norm_forward, "iifllpppppppp")                     \
  row(norm, layer_norm_backward, "iillppppppp")                      \
  row(norm, norm_by_column, "illllpppppp")                           \
  row(norm, add_tasks, "illpp")                                      \
  row(activation, rotary, "iiillllllllllllppppp")                    \
  row(activation, gated_activation, "iillllppp")                     \
  row(activation, gated_activation_backward, "iillllllppppp")        \
  row(softmax, softmax_forward, "iiilllllllppppf")                   \
  row(softmax, softmax_backward, "illpppf")                          \
  row(loss, cross_entropy_forward, "ifflllpppp")                     \
  row(loss, cross_entropy_backward, "ifflllppppp")                   \
  row(loss, cross_entropy_in_place, "iffflllppp")                    \
  row(quantize, quantize, "iiiillillpppp")                           \
  row(quantize, dequantize, "iiillpppp")                             \
  row(quantize, quantized_reduce, "iiiiilllllpppp")                  \
  row(tokens, check_index, "pllllp")                                 \
  row(tokens, gather_rows, "llllppp")                                \
  row(tokens, replace_rows, "llllpppp")                              \
  row(tokens, invert_index, "lllpppp")                               \
  row(tokens, sum_sources, "iillllppppp")                            \
  row(tokens, scatter_rows_backward, "iillllpppppp")                 \
  row(tokens, combine_rows, "iillllpppp")                            \
  row(tokens, combine_rows_weights, "iillllpppp")                    \
  row(matmul, linear_weight_only, "iiillllpppppp")                   \
  row(matmul, linear_w8a8, "iillllppppppp")
// clang-format on
