// Starts row tiles: R places of a queue against the column tile of a full bank, R * words cycles each, without a gap.
//
// A row tile starts only when the result queue has room for all of its rows, so nothing behind it ever has to stop: there
// is no clock enable in the array. `armed` holds what starts next, fetched while the tile before it streams.
module tile_issuer #(
    parameter R = 8,
    parameter RBITS = 3,
    parameter XBITS = 12,
    parameter WORDBITS = 9,
    parameter QBITS = 11,
    parameter ROOM = 64,
    parameter ROOMBITS = 6
) (
    input  wire                clk,
    input  wire                rst,
    // a bank was filled
    input  wire                fill,
    input  wire                fill_bank,
    input  wire [7:0]          fill_expert,
    input  wire [XBITS-1:0]    fill_base,
    input  wire [WORDBITS-1:0] fill_words,
    input  wire [15:0]         fill_tile,
    input  wire [QBITS-1:0]    fill_queue,
    input  wire [QBITS:0]      fill_count,
    output reg  [1:0]          full,
    // room in the result queue
    input  wire [ROOMBITS:0]   reserved,
    output wire [RBITS:0]      start_rows,
    // a row tile starts
    output wire                start,
    output wire                start_bank,
    output wire [7:0]          start_expert,
    output wire [15:0]         start_tile,
    output wire [QBITS-1:0]    start_place,
    // the stream of the row tile that runs
    output reg                 running,
    output reg                 bank,
    output reg  [XBITS-1:0]    base,
    output reg  [WORDBITS-1:0] words,
    output reg  [QBITS-1:0]    place,
    output reg  [RBITS-1:0]    row,
    output reg  [WORDBITS-1:0] word,
    output wire                first,
    output wire                last,
    output reg                 armed,
    output wire                waits_for_room
);
    // What each bank holds.
    reg [7:0]          expert_of [0:1];
    reg [XBITS-1:0]    base_of   [0:1];
    reg [WORDBITS-1:0] words_of  [0:1];
    reg [15:0]         tile_of   [0:1];
    reg [QBITS-1:0]    queue_of  [0:1];
    reg [QBITS:0]      count_of  [0:1];
    always @(posedge clk) if (fill) begin
        expert_of[fill_bank] <= fill_expert;
        base_of[fill_bank]   <= fill_base;
        words_of[fill_bank]  <= fill_words;
        tile_of[fill_bank]   <= fill_tile;
        queue_of[fill_bank]  <= fill_queue;
        count_of[fill_bank]  <= fill_count;
    end

    // The three states of a bank: filled (`full`), fetched as the next one to start from (`armed`), read by the row
    // tile that runs. `full` falls with the last slot of the queue's last row tile; the loader may then write again.
    //
    //     full[b]    ____/-----------------------------\____
    //     armed      _____/-----------------\_______________      falls when the last row tile has started
    //     running    _______/---------------------------\___      row tile after row tile, no gap
    reg             next_bank;   // of the row tile that starts next
    reg [QBITS-1:0] next_place;
    reg [QBITS:0]   left;        // places of its queue that have not started
    reg             frees;       // the running row tile is the last one to read its bank

    assign first = running & (row == 0) & (word == 0);
    assign last  = running & (row == R - 1) & (word == words - 1);

    // The last slot counts as free: the next row tile's first slot follows in the very next cycle.
    wire   free           = ~running | last;
    wire   last_of_queue  = left <= R;
    assign start_rows     = last_of_queue ? left[RBITS:0] : R[RBITS:0];
    // Rows that were promised a place and have not left yet, with those of this tile.
    wire   room           = {1'b0, reserved} + start_rows <= ROOM;
    assign start          = armed & free & room;
    assign start_bank     = next_bank;
    assign start_expert   = expert_of[next_bank];
    assign start_tile     = tile_of[next_bank];
    assign start_place    = next_place;
    assign waits_for_room = armed & free & ~room;

    always @(posedge clk) begin
        if (last) running <= 1'b0;
        if (running) begin
            row <= row + 1;
            if (row == R - 1) word <= word + 1;
        end
        if (start) begin
            running    <= 1'b1;
            bank       <= next_bank;
            base       <= base_of[next_bank];
            words      <= words_of[next_bank];
            place      <= next_place;
            row        <= 0;
            word       <= 0;
            frees      <= last_of_queue;
            next_place <= next_place + R[QBITS-1:0];
            left       <= left - R[QBITS:0];
            if (last_of_queue) begin
                armed     <= 1'b0;
                next_bank <= ~next_bank;
            end
        end
        if (~armed & full[next_bank]) begin
            armed      <= 1'b1;
            next_place <= queue_of[next_bank];
            left       <= count_of[next_bank];
        end
        // Never for one bank in one cycle: the loader writes a bank only after it was read.
        if (fill) full[fill_bank] <= 1'b1;
        if (last & frees) full[bank] <= 1'b0;
        if (rst) begin
            running   <= 1'b0;
            armed     <= 1'b0;
            next_bank <= 1'b0;
            full      <= 2'b00;
        end
    end
endmodule
