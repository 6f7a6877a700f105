// Finished rows on their way out: a queue in block RAM with a register behind it, valid/ready. 2 cycles from `write` to `valid`.
// It never refuses a row: who starts a row tile has reserved the room.
module result_queue #(
    parameter WIDTH = 64,
    parameter DEPTH = 64,
    parameter BITS = 6
) (
    input  wire             clk,
    input  wire             rst,
    input  wire             write,
    input  wire [WIDTH-1:0] value,
    output reg              valid,
    input  wire             ready,
    output reg  [WIDTH-1:0] out
);
    reg [WIDTH-1:0] rows [0:DEPTH-1];
    // A bit more than an address needs: equal counters mean empty, so that all DEPTH rows can be in use.
    reg [BITS:0]    written, taken;
    wire            fetch = (written != taken) & (~valid | ready);
    always @(posedge clk) begin
        if (write) rows[written[BITS-1:0]] <= value;
        if (fetch) out <= rows[taken[BITS-1:0]];
        if (write) written <= written + 1;
        if (fetch) taken <= taken + 1;
        if (fetch) valid <= 1'b1;
        else if (ready) valid <= 1'b0;
        if (rst) begin
            written <= 0;
            taken   <= 0;
            valid   <= 1'b0;
        end
    end
endmodule
