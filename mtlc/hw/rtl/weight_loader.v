// Takes descriptors, and for each column tile of each one the tile's weights from the port into the free bank.
//
// A tile on the port is `k` beats of C weights (row k of the tile) and then 7 beats of requantisation parameters. Weights
// may come as soon as the bank's last row tile has read them; the parameters wait until its last sums were requantised.
// An empty queue is passed over: nothing is fetched for it.
module weight_loader #(
    parameter KBITS = 11,
    parameter XBITS = 12,
    parameter WORDBITS = 9,
    parameter QBITS = 11
) (
    input  wire                clk,
    input  wire                rst,
    // descriptors
    input  wire                d_valid,
    output wire                d_ready,
    input  wire [7:0]          d_expert,
    input  wire [XBITS-1:0]    d_base,
    input  wire [KBITS:0]      d_k,
    input  wire [WORDBITS-1:0] d_words,
    input  wire [15:0]         d_tiles,
    input  wire [QBITS-1:0]    d_queue,
    input  wire [QBITS:0]      d_count,
    // weights
    input  wire                w_valid,
    output wire                w_ready,
    output wire                write_weights,
    output wire                write_parameters,
    output reg                 bank,
    output wire [KBITS-1:0]    row,
    // banks: `fill` when the tile is whole, with what it is for
    input  wire [1:0]          full,
    input  wire [1:0]          draining,
    output wire                fill,
    output reg  [7:0]          expert,
    output reg  [XBITS-1:0]    base,
    output reg  [WORDBITS-1:0] words,
    output reg  [15:0]         tile,
    output reg  [QBITS-1:0]    queue,
    output reg  [QBITS:0]      count,
    output reg                 busy
);
    reg [KBITS:0] k, beat;
    reg [15:0]    tiles;
    reg           parameters;

    // Two guards, as a bank is used twice: its weights until the last slot has read them (`full`), its parameters until
    // the sums of that slot have passed the requantisers (`draining`), which is later.
    assign w_ready          = busy & (parameters ? ~draining[bank] : ~full[bank]);
    wire   taken            = w_valid & w_ready;
    assign write_weights    = taken & ~parameters;
    assign write_parameters = taken & parameters;
    assign row              = beat[KBITS-1:0];
    assign fill             = write_parameters & (beat == 6);
    wire   finishing        = fill & (tile == tiles - 1);
    // Also in the cycle of a descriptor's last beat: the next one's first beat can follow at once.
    assign d_ready          = ~busy | finishing;
    wire   begins           = d_valid & d_ready & (d_count != 0) & (d_tiles != 0);

    always @(posedge clk) begin
        if (taken) beat <= beat + 1;
        if (write_weights & (beat == k - 1)) begin
            parameters <= 1'b1;
            beat       <= 0;
        end
        if (fill) begin
            parameters <= 1'b0;
            beat       <= 0;
            bank       <= ~bank;
            tile       <= tile + 1;
        end
        if (finishing) busy <= 1'b0;
        if (begins) begin
            busy   <= 1'b1;
            expert <= d_expert;
            base   <= d_base;
            k      <= d_k;
            words  <= d_words;
            tiles  <= d_tiles;
            queue  <= d_queue;
            count  <= d_count;
            tile   <= 0;
        end
        if (rst) begin
            busy       <= 1'b0;
            bank       <= 1'b0;
            parameters <= 1'b0;
            beat       <= 0;
        end
    end
endmodule
