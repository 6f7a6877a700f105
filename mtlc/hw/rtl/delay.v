// `value` `CYCLES` cycles later. Without a reset, so that it becomes shift-register LUTs.
module delay #(
    parameter WIDTH = 8,
    parameter CYCLES = 1
) (
    input  wire             clk,
    input  wire [WIDTH-1:0] value,
    output wire [WIDTH-1:0] delayed
);
    generate
        if (CYCLES == 0) begin : none
            assign delayed = value;
        end else begin : some
            reg [WIDTH*CYCLES-1:0] held;
            if (CYCLES == 1) begin : one
                always @(posedge clk) held <= value;
            end else begin : chain
                always @(posedge clk) held <= {held[WIDTH*(CYCLES-1)-1:0], value};
            end
            assign delayed = held[WIDTH*CYCLES-1 -: WIDTH];
        end
    endgenerate
endmodule
