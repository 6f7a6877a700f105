/* What a host without the engine would do: the experts of every layer on the recorded frame, in plain C99.
 * run_expert FOLDER OUT writes to OUT the outputs of all layers, queue after queue. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mtlc_experts.h"

static unsigned char *read_file(const char *folder, const char *name)
{
    char path[4096];
    unsigned char *data;
    FILE *file;
    long size;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    file = fopen(path, "rb");
    if (!file) exit(2);
    fseek(file, 0, SEEK_END);
    size = ftell(file);
    rewind(file);
    data = malloc((size_t)size + 1);
    if (!data || fread(data, 1, (size_t)size, file) != (size_t)size) exit(2);
    fclose(file);
    return data;
}

/* One output: its weights and parameters are lane `lane` of the beats of tile `tile`. */
static int8_t output(const mtlc_matrix *m, const unsigned char *expert, uint32_t n, const int8_t *x)
{
    const uint32_t tile = n / MTLC_COLUMNS, lane = n % MTLC_COLUMNS;
    const unsigned char *beat = expert + (size_t)tile * (m->inputs + MTLC_PARAMETER_BEATS) * MTLC_COLUMNS + lane;
    const unsigned char *p = beat + (size_t)m->inputs * MTLC_COLUMNS;
    const uint32_t bits = (uint32_t)p[0] | (uint32_t)p[MTLC_COLUMNS] << 8 | (uint32_t)p[2 * MTLC_COLUMNS] << 16
                          | (uint32_t)p[3 * MTLC_COLUMNS] << 24;
    const int64_t multiplier = p[4 * MTLC_COLUMNS] | p[5 * MTLC_COLUMNS] << 8;
    const int shift = p[6 * MTLC_COLUMNS] + 1;
    int32_t bias;
    int64_t sum = 0, scaled, floored;
    uint32_t k;
    memcpy(&bias, &bits, sizeof bias);
    for (k = 0; k < m->inputs; k++) sum += (int64_t)(int8_t)beat[(size_t)k * MTLC_COLUMNS] * x[k];
    scaled = (sum + bias) * multiplier + ((int64_t)1 << (shift - 1));
    floored = scaled / ((int64_t)1 << shift); /* towards zero: one less where something below zero was cut off */
    if (scaled < 0 && floored * ((int64_t)1 << shift) != scaled) floored--;
    return (int8_t)(floored < -128 ? -128 : floored > 127 ? 127 : floored);
}

int main(int argc, char **argv)
{
    unsigned char *weights, *descriptors, *queues, *tokens;
    FILE *out;
    int l;
    if (argc != 3) return 2;
    weights = read_file(argv[1], "weights.bin");
    descriptors = read_file(argv[1], "descriptors.bin");
    queues = read_file(argv[1], "queues.bin");
    tokens = read_file(argv[1], "tokens.bin");
    out = fopen(argv[2], "wb");
    if (!out) return 2;
    for (l = 0; l < MTLC_LAYERS; l++) {
        const mtlc_layer *layer = &mtlc_layers[l];
        uint32_t e, place, n;
        for (e = 0; e < layer->experts; e++) {
            mtlc_descriptor d, made;
            memcpy(&d, descriptors + layer->fc1.descriptors + e * sizeof d, sizeof d);
            made = mtlc_describe(&layer->fc1, (uint16_t)e, d.queue, d.count);
            if (memcmp(&d, &made, sizeof d) != 0) return 3;
            for (place = d.queue; place < d.queue + d.count; place++) {
                const unsigned char *entry = queues + layer->fc1.queue + 2 * place;
                const uint32_t token = entry[0] | (uint32_t)entry[1] << 8;
                const int8_t *x = (const int8_t *)tokens + layer->tokens_at + (size_t)token * layer->fc1.inputs;
                int8_t hidden[MTLC_K_MAX];
                for (n = 0; n < layer->fc1.outputs; n++)
                    hidden[n] = layer->gelu[128 + output(&layer->fc1, weights + layer->fc1.offset + e * layer->fc1.expert_bytes, n, x)];
                for (n = 0; n < layer->fc2.outputs; n++)
                    fputc((unsigned char)output(&layer->fc2, weights + layer->fc2.offset + e * layer->fc2.expert_bytes, n, hidden), out);
            }
        }
    }
    return fclose(out) ? 2 : 0;
}
