// Drives the engine from a file of requests and writes what came out. Built by Verilator with R, C from the command line.
//
// Request, little-endian 64-bit words: descriptors, token words, queue places, weight beats, bandwidth and beat in 1/256
// bytes a cycle, back-pressure in 1/256, seed, cycle limit; then the descriptors (7 words each), tokens, queue (16 bit),
// beats. Answer: cycles, streaming, waits for weights, waits for room, beats that waited, rows refused, rows, then each row.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "Vgemm_engine.h"
#include "verilated.h"

static uint64_t word(FILE* file) {
    uint64_t value = 0;
    if (fread(&value, 8, 1, file) != 1) throw 1;
    return value;
}

static std::vector<uint8_t> bytes(FILE* file, size_t size) {
    std::vector<uint8_t> found(size + 64);  // ports are copied in whole words
    if (size && fread(found.data(), 1, size, file) != size) throw 1;
    return found;
}

// splitmix64
static uint64_t random_word(uint64_t& state) {
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    FILE* in = fopen(argv[1], "rb");
    if (!in) return 2;
    try {
        const uint64_t descriptors = word(in), x_words = word(in), places = word(in), beats = word(in);
        const uint64_t bandwidth = word(in), beat = word(in), pressure = word(in);
        uint64_t seed = word(in);
        const uint64_t limit = word(in);
        std::vector<uint64_t> d(descriptors * 7);
        for (auto& value : d) value = word(in);
        const auto x = bytes(in, x_words * R);
        const auto queue = bytes(in, places * 2);
        const auto w = bytes(in, beats * C);
        fclose(in);

        VerilatedContext context;
        Vgemm_engine dut(&context);
        // Both edges: registers take over on the rising one, the falling one only gets the clock back.
        auto tick = [&] { dut.clk = 1; dut.eval(); dut.clk = 0; dut.eval(); };
        dut.clk = 0; dut.rst = 1; dut.eval();
        for (int i = 0; i < 64; i++) tick();  // long enough to flush every delay line
        for (uint64_t i = 0; i < x_words; i++) {
            dut.x_write = 1; dut.x_address = i; memcpy(&dut.x_data, &x[i * R], R); tick();
        }
        dut.x_write = 0;
        for (uint64_t i = 0; i < places; i++) {
            dut.q_write = 1; dut.q_address = i; dut.q_data = queue[2 * i] | queue[2 * i + 1] << 8; tick();
        }
        dut.q_write = 0; dut.rst = 0;

        std::vector<uint8_t> rows;
        uint64_t cycles = 0, next_d = 0, next_w = 0, streaming = 0, waits_w = 0, waits_room = 0, late = 0, refused = 0;
        uint64_t credit = beat, count = 0, taken = 0;
        // A cycle: ports as the clock edge finds them, then the edge. The count that is reported ends with the
        // cycle in which the last row is taken.
        while (true) {
            dut.d_valid = next_d < descriptors;
            if (dut.d_valid) {
                const uint64_t* one = &d[next_d * 7];
                dut.d_expert = one[0]; dut.d_base = one[1]; dut.d_k = one[2]; dut.d_words = one[3];
                dut.d_tiles = one[4]; dut.d_queue = one[5]; dut.d_count = one[6];
            }
            dut.w_valid = next_w < beats && credit >= beat;
            if (dut.w_valid) memcpy(&dut.w_data, &w[next_w * C], C);
            dut.y_ready = (random_word(seed) & 255) >= pressure;
            dut.eval();
            if (next_d == descriptors && next_w == beats && dut.idle) break;
            cycles++;
            if (cycles > limit) return 3;
            streaming += dut.streams; waits_w += dut.waits_for_weights; waits_room += dut.waits_for_room;
            late += dut.w_ready && !dut.w_valid; refused += dut.y_valid && !dut.y_ready;
            next_d += dut.d_valid && dut.d_ready;
            // Saved up only while there is no whole beat: a beat on offer that nobody takes earns nothing. `_Port` in
            // cycles.py says the same as a formula.
            if (dut.w_valid && dut.w_ready) { next_w++; credit -= beat; }
            if (credit < beat) credit += bandwidth;
            if (dut.y_valid && dut.y_ready) {
                count++;
                taken = cycles;
                const uint32_t mark[3] = {(uint32_t)dut.y_expert, (uint32_t)dut.y_tile, (uint32_t)dut.y_place};
                const auto* m = reinterpret_cast<const uint8_t*>(mark);
                rows.insert(rows.end(), m, m + 12);
                const auto* y = reinterpret_cast<const uint8_t*>(&dut.y_data);
                rows.insert(rows.end(), y, y + C);
            }
            tick();
        }
        FILE* out = fopen(argv[2], "wb");
        if (!out) return 2;
        const uint64_t head[7] = {taken, streaming, waits_w, waits_room, late, refused, count};
        bool written = fwrite(head, 8, 7, out) == 7 && fwrite(rows.data(), 1, rows.size(), out) == rows.size();
        written = fclose(out) == 0 && written;
        return written ? 0 : 2;
    } catch (int) {
        return 2;
    }
}
