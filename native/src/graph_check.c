/* Checks an ONNX file before an engine sees it: its operators and where its weights lie. */
#include "graph_check.h"

#include <string.h>

enum { MAX_DEPTH = 32, MAX_VERSION = 1000, PLACES = 4 };

/* Of onnxruntime's own operators only those that compute: others (EPContext, for one) load files that they name. */
static const char *const CONTRIB_OPERATORS[] = {
    "Attention", "BiasGelu", "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "FastGelu",
    "FusedConv", "FusedGemm", "FusedMatMul", "Gelu", "GroupNorm", "MatMulIntegerToFloat", "MatMulNBits", "MoE",
    "MultiHeadAttention", "NhwcMaxPool", "QAttention", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat",
    "QLinearConv", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid",
    "QLinearSoftmax", "QMoE", "QuantizeLinear", "QuickGelu", "SkipLayerNormalization", NULL,
};
static const char *const STANDARD_DOMAINS[] = {"", "ai.onnx", "ai.onnx.ml", NULL};
static const char *const EXTERNAL_KEYS[PLACES + 1] = {"location", "offset", "length", "checksum", NULL};

typedef struct graph_check {
    check *of;
    const char *name;
    const manifest *in;
} graph_check;

static int place_of(text name, const char *const *known)
{
    for (int i = 0; known[i] != NULL; i++) {
        if (text_equal(name, text_of(known[i]))) {
            return i;
        }
    }
    return -1;
}

static fields open_message(const graph_check *by, const message *known, buffer content)
{
    return begin_fields(by->of, by->name, known, content);
}

/* A size as it is written there: digits, fewer than 20, perhaps with a minus. */
static int64_t read_size(const graph_check *by, text written)
{
    int64_t value = 0;
    const bool negative = written.length > 0 && written.data[0] == '-';
    const size_t digits = written.length - negative;
    bool good = digits > 0 && digits < 20;
    for (size_t i = negative; good && i < written.length; i++) {
        const int digit = written.data[i] - '0';
        good = digit >= 0 && digit <= 9;
        value = good && value <= (INT64_MAX - digit) / 10 ? 10 * value + digit : INT64_MAX;
    }
    if (!good) {
        refuse(by->of, MTLC_GRAPH_WEIGHTS, "%s: a weight's offset or length is not a number", by->name);
    }
    return negative ? -value : value;
}

static void read_place(const graph_check *by, buffer content, text entries[PLACES], bool there[PLACES])
{
    fields parts = open_message(by, &ENTRY, content);
    text entry[3] = {TEXT(""), TEXT(""), TEXT("")};
    field part;
    while (next_field(&parts, &part)) {
        entry[part.number] = field_text(&parts, part.content);
    }
    const int place = place_of(entry[1], EXTERNAL_KEYS);
    if (place < 0 || there[place]) {
        refuse(by->of, MTLC_GRAPH_WEIGHTS, "%s: a weight says %s where it lies", by->name,
               place < 0 ? "what the runtime does not know of" : "twice");
    }
    entries[place] = entry[2];
    there[place] = true;
}

static void check_tensor(const graph_check *by, buffer content)
{
    fields parts = open_message(by, &TENSOR, content);
    text entries[PLACES] = {TEXT(""), TEXT("0"), TEXT("0"), TEXT("")};
    bool there[PLACES] = {false}, any = false;
    field part;
    while (next_field(&parts, &part)) {
        if (part.number == 13) { /* external_data */
            read_place(by, part.content, entries, there);
            any = true;
        }
    }
    if (!any) {
        return;
    }
    const long file = names_find(&by->in->file_names, entries[0]);
    if (file == NO_NAME) {
        refuse(by->of, MTLC_GRAPH_WEIGHTS, "%s: a weight lies in %s, which is not a file of the bundle", by->name,
               shown(entries[0]));
    }
    const int64_t offset = read_size(by, entries[1]), length = read_size(by, entries[2]);
    const int64_t bytes = by->in->files[file].bytes;
    if (offset < 0 || length < 0 || offset > bytes || length > bytes - offset) {
        refuse(by->of, MTLC_GRAPH_WEIGHTS, "%s: a weight lies beyond the end of %s", by->name, shown(entries[0]));
    }
}

static void check_sparse(const graph_check *by, buffer content)
{
    fields parts = open_message(by, &SPARSE, content);
    field part;
    while (next_field(&parts, &part)) {
        if (part.number == 1 || part.number == 2) { /* values, indices */
            check_tensor(by, part.content);
        }
    }
}

static void check_nodes(const graph_check *by, buffer content, int depth);

static void check_attribute(const graph_check *by, buffer content, int depth)
{
    fields parts = open_message(by, &ATTRIBUTE, content);
    field part;
    while (next_field(&parts, &part)) {
        if (part.number == 5 || part.number == 10) { /* t, tensors */
            check_tensor(by, part.content);
        } else if (part.number == 6 || part.number == 11) { /* g, graphs */
            check_nodes(by, part.content, depth + 1);
        } else if (part.number == 22 || part.number == 23) { /* sparse_tensor, sparse_tensors */
            check_sparse(by, part.content);
        }
    }
}

static void check_node(const graph_check *by, buffer content, int depth)
{
    fields parts = open_message(by, &NODE, content);
    text operator_of = TEXT(""), domain = TEXT("");
    field part;
    while (next_field(&parts, &part)) {
        if (part.number == 4) { /* op_type */
            operator_of = field_text(&parts, part.content);
        } else if (part.number == 7) {
            domain = field_text(&parts, part.content);
        } else if (part.number == 5) {
            check_attribute(by, part.content, depth);
        }
    }
    if (place_of(domain, STANDARD_DOMAINS) < 0 &&
        !(text_equal(domain, TEXT("com.microsoft")) && place_of(operator_of, CONTRIB_OPERATORS) >= 0)) {
        refuse(by->of, MTLC_GRAPH_OPERATOR, "%s: the operator %s of %s is not on the list of those that are taken",
               by->name, shown(operator_of), shown(domain));
    }
}

static void check_nodes(const graph_check *by, buffer content, int depth)
{
    fields parts = open_message(by, &GRAPH, content);
    field part;
    if (depth > MAX_DEPTH) {
        refuse(by->of, MTLC_GRAPH_CONTENT, "%s: its graphs are nested more than %d deep", by->name, MAX_DEPTH);
    }
    while (next_field(&parts, &part)) {
        if (part.number == 1) { /* node */
            check_node(by, part.content, depth);
        } else if (part.number == 5) { /* initializer */
            check_tensor(by, part.content);
        } else if (part.number == 15) { /* sparse_initializer */
            check_sparse(by, part.content);
        }
    }
}

static void check_metadata(const graph_check *by, buffer content)
{
    fields parts = open_message(by, &ENTRY, content);
    field part;
    while (next_field(&parts, &part)) {
        if (part.number == 1 && text_equal(field_text(&parts, part.content), TEXT("ort_config"))) {
            refuse(by->of, MTLC_GRAPH_CONTENT, "%s: it sets options of onnxruntime (ort_config)", by->name);
        }
    }
}

static void check_opset(const graph_check *by, buffer content)
{
    fields parts = open_message(by, &OPSET, content);
    field part;
    while (next_field(&parts, &part)) {
        if (part.number == 2 && part.value > MAX_VERSION) {
            refuse(by->of, MTLC_GRAPH_CONTENT, "%s: its version of a set of operators is not one", by->name);
        }
    }
}

void check_graph(check *of, const char *name, buffer content, const manifest *in)
{
    const graph_check by = {of, name, in};
    if (content.at == content.end) {
        refuse(of, MTLC_GRAPH_DAMAGED, "%s: the file is empty", name);
    }
    fields parts = open_message(&by, &MODEL, content);
    field part;
    int graphs = 0;
    uint64_t version = 0;
    while (next_field(&parts, &part)) {
        switch (part.number) {
        case 1: /* ir_version */
            version = part.value;
            break;
        case 7:
            graphs++;
            check_nodes(&by, part.content, 0);
            break;
        case 25:
            refuse(of, MTLC_GRAPH_CONTENT, "%s: it defines functions of its own", name);
        case 20:
            refuse(of, MTLC_GRAPH_CONTENT, "%s: it holds graphs for training", name);
        case 14: /* metadata_props */
            check_metadata(&by, part.content);
            break;
        case 8: /* opset_import */
            check_opset(&by, part.content);
            break;
        default:
            break;
        }
    }
    if (graphs != 1) {
        refuse(of, MTLC_GRAPH_DAMAGED, "%s: not a whole ONNX file", name);
    }
    if (version > MAX_VERSION) {
        refuse(of, MTLC_GRAPH_CONTENT, "%s: its version of ONNX's format is not one", name);
    }
}
