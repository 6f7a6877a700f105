// An INT8 engine for the linear layers of experts: y[place] = requantise(x[queue[place]] . W_e + bias_e) for every place
// of every expert's queue. A dense layer is one descriptor whose queue names all tokens. See docs/rtl.md.
//
// R rows of tokens x C columns of outputs, output-stationary. R and C are powers of two, R >= 4 and C <= 4R.
module gemm_engine #(
    parameter R = 8,
    parameter C = 8,
    parameter ACC = 32,
    parameter KMAX = 2048,    // the longest sum, rows of a weight bank
    parameter XWORDS = 65536 / R,  // words of R features in the token memory
    parameter QMAX = 2048     // places of all queues
) (
    input  wire                      clk,
    input  wire                      rst,
    // token memory, R features a word; a token takes d_words words, the last one padded with zeros
    input  wire                      x_write,
    input  wire [$clog2(XWORDS)-1:0] x_address,
    input  wire [R*8-1:0]            x_data,
    // queue memory, a token index each
    input  wire                      q_write,
    input  wire [$clog2(QMAX)-1:0]   q_address,
    input  wire [15:0]               q_data,
    // descriptors: the layer of one expert
    input  wire                      d_valid,
    output wire                      d_ready,
    input  wire [7:0]                d_expert,  // handed through to the results
    input  wire [$clog2(XWORDS)-1:0] d_base,    // first word of token 0
    input  wire [$clog2(KMAX):0]     d_k,       // features, beats of weights in a tile
    input  wire [$clog2(KMAX/R):0]   d_words,   // words of a token, at least 2, d_words * R >= d_k
    input  wire [15:0]               d_tiles,   // column tiles
    input  wire [$clog2(QMAX)-1:0]   d_queue,   // first place of its queue
    input  wire [$clog2(QMAX):0]     d_count,   // places of its queue, 0: nothing to do
    // weights and requantisation parameters, lane c for column c
    input  wire                      w_valid,
    output wire                      w_ready,
    input  wire [C*8-1:0]            w_data,
    // results, a row of C outputs each
    output wire                      y_valid,
    input  wire                      y_ready,
    output wire [C*8-1:0]            y_data,
    output wire [7:0]                y_expert,
    output wire [15:0]               y_tile,
    output wire [$clog2(QMAX)-1:0]   y_place,
    // what it does: for counters
    output wire                      idle,
    output wire                      streams,
    output wire                      waits_for_weights,
    output wire                      waits_for_room
);
    localparam RBITS    = $clog2(R);
    localparam KBITS    = $clog2(KMAX);
    localparam XBITS    = $clog2(XWORDS);
    localparam QBITS    = $clog2(QMAX);
    localparam WORDBITS = $clog2(KMAX/R) + 1;
    localparam ROOM     = 8 * R;  // all rows that can be between a start and the queue, at the shortest row tile
    localparam ROOMBITS = $clog2(ROOM);
    localparam AFTER_TOP = 4 + C - 1;  // requantisation, and column 0 waiting for column C-1
    localparam META     = 1 + 8 + 16 + QBITS;

    wire                write_weights, write_parameters, load_bank, fill, busy;
    wire [KBITS-1:0]    load_row;
    wire [7:0]          fill_expert;
    wire [XBITS-1:0]    fill_base;
    wire [WORDBITS-1:0] fill_words;
    wire [15:0]         fill_tile;
    wire [QBITS-1:0]    fill_queue;
    wire [QBITS:0]      fill_count;
    wire [1:0]          full, draining;
    weight_loader #(.KBITS(KBITS), .XBITS(XBITS), .WORDBITS(WORDBITS), .QBITS(QBITS)) loader (
        .clk(clk), .rst(rst),
        .d_valid(d_valid), .d_ready(d_ready), .d_expert(d_expert), .d_base(d_base), .d_k(d_k), .d_words(d_words),
        .d_tiles(d_tiles), .d_queue(d_queue), .d_count(d_count),
        .w_valid(w_valid), .w_ready(w_ready), .write_weights(write_weights), .write_parameters(write_parameters),
        .bank(load_bank), .row(load_row), .full(full), .draining(draining), .fill(fill),
        .expert(fill_expert), .base(fill_base), .words(fill_words), .tile(fill_tile), .queue(fill_queue),
        .count(fill_count), .busy(busy)
    );

    wire                start, start_bank, running, bank, first, last, armed;
    wire [RBITS:0]      start_rows;
    wire [7:0]          start_expert;
    wire [15:0]         start_tile;
    wire [QBITS-1:0]    start_place, place;
    wire [XBITS-1:0]    base;
    wire [WORDBITS-1:0] words, word;
    wire [RBITS-1:0]    row;
    // Room is reserved when a row tile starts and given back when a row is taken: what is under way has its place.
    reg  [ROOMBITS:0]   reserved;
    tile_issuer #(
        .R(R), .RBITS(RBITS), .XBITS(XBITS), .WORDBITS(WORDBITS), .QBITS(QBITS), .ROOM(ROOM), .ROOMBITS(ROOMBITS)
    ) issuer (
        .clk(clk), .rst(rst),
        .fill(fill), .fill_bank(load_bank), .fill_expert(fill_expert), .fill_base(fill_base), .fill_words(fill_words),
        .fill_tile(fill_tile), .fill_queue(fill_queue), .fill_count(fill_count), .full(full),
        .reserved(reserved), .start_rows(start_rows), .start(start), .start_bank(start_bank),
        .start_expert(start_expert), .start_tile(start_tile), .start_place(start_place),
        .running(running), .bank(bank), .base(base), .words(words), .place(place), .row(row), .word(word),
        .first(first), .last(last), .armed(armed), .waits_for_room(waits_for_room)
    );

    wire [R*8-1:0] x;
    wire [R-1:0]   x_first, x_last;
    token_feed #(
        .R(R), .RBITS(RBITS), .XWORDS(XWORDS), .XBITS(XBITS), .WORDBITS(WORDBITS), .QMAX(QMAX), .QBITS(QBITS)
    ) feed (
        .clk(clk), .rst(rst), .x_write(x_write), .x_address(x_address), .x_data(x_data),
        .q_write(q_write), .q_address(q_address), .q_data(q_data),
        .running(running), .first(first), .last(last), .row(row), .word(word), .base(base), .words(words),
        .place(place), .x(x), .x_first(x_first), .x_last(x_last)
    );

    // The two weight banks, ping and pong, read at word * R + row, in step with the tokens' 5 cycles.
    reg  [C*8-1:0]  weights [0:2*KMAX-1];
    reg  [C*8-1:0]  weight_row, weight_row_later;
    wire [KBITS:0]  read3;
    wire [C*8-1:0]  w;
    wire [KBITS-1:0] feature = {word, row};
    delay #(.WIDTH(KBITS + 1), .CYCLES(3)) read_later (.clk(clk), .value({bank, feature}), .delayed(read3));
    always @(posedge clk) begin
        if (write_weights) weights[{load_bank, load_row}] <= w_data;
        weight_row       <= weights[read3];
        weight_row_later <= weight_row;
    end

    wire [C*ACC-1:0] top;
    wire             top_valid;
    gemm_array #(.R(R), .C(C), .ACC(ACC)) array (
        .clk(clk), .rst(rst), .x(x), .first(x_first), .last(x_last), .w(w), .top(top), .top_valid(top_valid)
    );

    // What the row tiles are whose sums have not left the array: 4 of them at the most, as each takes 2R cycles or more.
    // Written at the start, read when the sums arrive at the top: they leave in the order in which they were started.
    reg [META+RBITS:0] tiles [0:7];
    reg [2:0]          tile_written, tile_read;
    reg [RBITS-1:0]    drained;  // rows of the oldest one that have left
    wire               top_bank;
    wire [7:0]         top_expert;
    wire [15:0]        top_tile;
    wire [QBITS-1:0]   top_place;
    wire [RBITS:0]     top_rows;
    assign {top_bank, top_expert, top_tile, top_place, top_rows} = tiles[tile_read];
    always @(posedge clk) begin
        if (start) begin
            tiles[tile_written] <= {start_bank, start_expert, start_tile, start_place, start_rows};
            tile_written        <= tile_written + 1;
        end
        if (top_valid) begin
            drained <= drained + 1;
            if (drained == R - 1) tile_read <= tile_read + 1;
        end
        if (rst) begin
            tile_written <= 0;
            tile_read    <= 0;
            drained      <= 0;
        end
    end

    wire [C*8-1:0] y;
    genvar c;
    generate
        for (c = 0; c < C; c = c + 1) begin : column
            wire       bank_here;
            wire [7:0] y_here;
            delay #(.WIDTH(8), .CYCLES(c)) skew (
                .clk(clk), .value(weight_row_later[c*8 +: 8]), .delayed(w[c*8 +: 8])
            );
            delay #(.WIDTH(1), .CYCLES(c)) bank_later (.clk(clk), .value(top_bank), .delayed(bank_here));
            requantise #(.ACC(ACC)) requantiser (
                .clk(clk), .load(write_parameters), .load_bank(load_bank), .load_byte(w_data[c*8 +: 8]),
                .sum(top[c*ACC +: ACC]), .bank(bank_here), .y(y_here)
            );
            delay #(.WIDTH(8), .CYCLES(C - 1 - c)) deskew (.clk(clk), .value(y_here), .delayed(y[c*8 +: 8]));
        end
    endgenerate

    // Marks of the row, as long behind `top_valid` as its outputs: whether it is a token's, and whether it ends the tile.
    wire                 keep, ends, end_bank;
    wire [7:0]           row_expert;
    wire [15:0]          row_tile;
    wire [QBITS-1:0]     row_place;
    wire [QBITS-1:0]     place_now = top_place + drained;
    // Rows beyond the queue's end computed on whatever was fetched; they go no further than this.
    wire                 keep_now = top_valid & ({1'b0, drained} < top_rows) & ~rst;
    wire                 ends_now = top_valid & (drained == R - 1) & ~rst;
    delay #(.WIDTH(META + 2), .CYCLES(AFTER_TOP)) marks (
        .clk(clk), .value({keep_now, ends_now, top_bank, top_expert, top_tile, place_now}),
        .delayed({keep, ends, end_bank, row_expert, row_tile, row_place})
    );

    reg [3:0] draining0, draining1;  // row tiles of a bank that still need its requantisation parameters
    assign draining = {draining1 != 0, draining0 != 0};
    always @(posedge clk) begin
        // Counted up at the start and down at the tile's last row: a bank may have many row tiles on the way.
        draining0 <= draining0 + {3'b0, start & ~start_bank} - {3'b0, ends & ~end_bank};
        draining1 <= draining1 + {3'b0, start & start_bank} - {3'b0, ends & end_bank};
        reserved  <= reserved + (start ? start_rows : 0) - {{ROOMBITS{1'b0}}, y_valid & y_ready};
        if (rst) begin
            draining0 <= 0;
            draining1 <= 0;
            reserved  <= 0;
        end
    end

    result_queue #(.WIDTH(C*8 + 24 + QBITS), .DEPTH(ROOM), .BITS(ROOMBITS)) results (
        .clk(clk), .rst(rst), .write(keep), .value({row_expert, row_tile, row_place, y}),
        .valid(y_valid), .ready(y_ready), .out({y_expert, y_tile, y_place, y_data})
    );

    assign idle              = ~busy & (full == 0) & ~armed & ~running & (draining == 0) & (reserved == 0);
    assign streams           = running;
    assign waits_for_weights = ~running & ~armed & busy;
endmodule
