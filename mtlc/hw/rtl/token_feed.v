// Gathers the tokens of a row tile and hands their features to the array's rows, each row one cycle after the row above.
//
// The skew that the array wants is what makes the gather cheap: in each cycle exactly one row needs a new word of R
// features, so one memory with one port feeds all rows, whatever tokens the queue names and wherever they lie.
// 5 cycles from the issuer's slot (row, word) to the first feature of that word at the array.
module token_feed #(
    parameter R = 8,
    parameter RBITS = 3,
    parameter XWORDS = 4096,
    parameter XBITS = 12,
    parameter WORDBITS = 9,
    parameter QMAX = 2048,
    parameter QBITS = 11
) (
    input  wire                clk,
    input  wire                rst,
    // tokens and queues, written before the descriptors that name them
    input  wire                x_write,
    input  wire [XBITS-1:0]    x_address,
    input  wire [R*8-1:0]      x_data,
    input  wire                q_write,
    input  wire [QBITS-1:0]    q_address,
    input  wire [15:0]         q_data,
    // the stream
    input  wire                running,
    input  wire                first,
    input  wire                last,
    input  wire [RBITS-1:0]    row,
    input  wire [WORDBITS-1:0] word,
    input  wire [XBITS-1:0]    base,
    input  wire [WORDBITS-1:0] words,
    input  wire [QBITS-1:0]    place,
    output wire [R*8-1:0]      x,
    output wire [R-1:0]        x_first,
    output wire [R-1:0]        x_last
);
    reg [15:0]    queue  [0:QMAX-1];
    reg [R*8-1:0] tokens [0:XWORDS-1];
    always @(posedge clk) begin
        if (q_write) queue[q_address] <= q_data;
        if (x_write) tokens[x_address] <= x_data;
    end

    // 1: the token of this row, 2: where its features start, 3: the word of features, 4: in the row's register
    wire [QBITS-1:0]   slot = place + row;
    reg [15:0]         token;
    reg [XBITS-1:0]    offset1, offset2, start2;
    reg [WORDBITS-1:0] words1;
    reg [R*8-1:0]      features;
    wire [XBITS-1:0]   address = start2 + offset2;
    always @(posedge clk) begin
        token    <= queue[slot];
        offset1  <= base + word;
        words1   <= words;
        start2   <= token * words1;
        offset2  <= offset1;
        features <= tokens[address];
    end

    wire [RBITS-1:0] row3, phase;
    wire             running3;
    delay #(.WIDTH(RBITS), .CYCLES(3)) row_later (.clk(clk), .value(row), .delayed(row3));
    delay #(.WIDTH(1), .CYCLES(3)) run_later (.clk(clk), .value(running), .delayed(running3));
    delay #(.WIDTH(RBITS), .CYCLES(1)) phase_later (.clk(clk), .value(row3), .delayed(phase));

    // `last` is on the last row's last slot: row 0's last feature. Both marks reach row r r cycles later.
    wire first4, last4;
    delay #(.WIDTH(2), .CYCLES(4)) mark_later (.clk(clk), .value({first, last & ~rst}), .delayed({first4, last4}));

    // The skew, R = 4, one column a cycle (5 cycles of latency left out); w0, w1 are a token's words, .0 to .3 the
    // features of one:
    //
    //     fetch    t0 w0   t1 w0   t2 w0   t3 w0   t0 w1   t1 w1   ...      one word a cycle, row by row
    //     row 0    w0.0    w0.1    w0.2    w0.3    w1.0    w1.1    ...
    //     row 1            w0.0    w0.1    w0.2    w0.3    w1.0    ...
    //     row 2                    w0.0    w0.1    w0.2    w0.3    ...
    //
    // A row is done with its word in the cycle in which its next one arrives, so a register of one word is enough.
    wire [RBITS-1:0] phase_at [0:R];
    wire [1:0]       mark_at  [0:R];
    assign phase_at[0] = phase;
    assign mark_at[0]  = {first4, last4};
    genvar r;
    generate
        for (r = 0; r < R; r = r + 1) begin : feed
            reg [R*8-1:0]   held;
            reg [7:0]       feature;
            reg [RBITS-1:0] phase_next;
            reg [1:0]       mark_next;
            always @(posedge clk) begin
                if (running3 & (row3 == r)) held <= features;
                feature    <= held[phase_at[r]*8 +: 8];
                phase_next <= phase_at[r];
                mark_next  <= rst ? 2'b00 : mark_at[r];
            end
            assign phase_at[r+1]  = phase_next;
            assign mark_at[r+1]   = mark_next;
            assign x[r*8 +: 8]    = feature;
            assign {x_first[r], x_last[r]} = mark_next;
        end
    endgenerate
endmodule
