/* Checks an ONNX file before an engine sees it: its operators, where its weights lie, how much it may compute. */
#ifndef MTLC_GRAPH_CHECK_H
#define MTLC_GRAPH_CHECK_H

#include "manifest.h"
#include "wire_format.h"

/* The fields of onnx.proto's messages (IR version 14). */
extern const message MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR, SPARSE, ENTRY, OPSET;

/* Refuses a file that uses an operator not on the list, or weights outside the bundle. `name` is the file's. */
void check_graph(check *of, const char *name, buffer content, const manifest *in);

/* Refuses a file with loops, or whose own numbers make a tensor of more than 1 GiB. It has passed check_graph. `folder`
 * is where the weights lie. */
void check_work(check *of, const char *name, buffer content, const char *folder);

#endif
