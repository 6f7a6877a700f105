// One element of the array: INT8 x INT8, summed in place (output-stationary).
//
// x and its marks travel to the right, w travels down, one element a cycle. `first_in` marks the first product of a sum,
// `last_in` its last. A finished sum moves into `result`, which is a link of the column's chain towards row 0, and the
// next sum starts in the very next cycle. From the operands to `result`: 3 cycles.
module gemm_pe #(
    parameter ACC = 32
) (
    input  wire                  clk,
    input  wire                  rst,
    input  wire signed [7:0]     x_in,
    input  wire                  first_in,
    input  wire                  last_in,
    input  wire signed [7:0]     w_in,
    output reg  signed [7:0]     x_out,
    output reg                   first_out,
    output reg                   last_out,
    output reg  signed [7:0]     w_out,
    input  wire        [ACC-1:0] below,
    output reg         [ACC-1:0] result,
    output reg                   finished
);
    wire [ACC-1:0] sum;

    always @(posedge clk) begin
        // The marks travel with the operand that they belong to. `last` is the one mark that must not be left from
        // before a reset: it would push an unfinished sum into the chain.
        x_out     <= x_in;
        w_out     <= w_in;
        first_out <= first_in;
        last_out  <= last_in & ~rst;
        finished  <= last_out & ~rst;
        // A finished sum takes the link, else what comes from below climbs on. Tiles start 2R cycles apart, so that
        // both never happen in one cycle.
        result    <= finished ? sum : below;
    end

`ifdef USE_DSP48E2
    // M and P registers only: A and B come from registers of the neighbours already. OPMODE is registered beside M, so
    // that it selects what is added when the product is there: P + M, or 0 + M at the start of a sum.
    wire [47:0] p;
    assign sum = p[ACC-1:0];
    DSP48E2 #(
        .AMULTSEL("A"), .BMULTSEL("B"), .A_INPUT("DIRECT"), .B_INPUT("DIRECT"), .USE_MULT("MULTIPLY"),
        .USE_SIMD("ONE48"), .AREG(0), .ACASCREG(0), .BREG(0), .BCASCREG(0), .CREG(0), .DREG(0), .ADREG(0),
        .MREG(1), .PREG(1), .OPMODEREG(1), .ALUMODEREG(0), .INMODEREG(0), .CARRYINREG(0), .CARRYINSELREG(0)
    ) dsp (
        .CLK(clk), .A({{22{x_in[7]}}, x_in}), .B({{10{w_in[7]}}, w_in}), .C(48'd0), .D(27'd0),
        .OPMODE({2'b00, 1'b0, ~first_in, 1'b0, 4'b0101}), .ALUMODE(4'd0), .INMODE(5'd0), .CARRYIN(1'b0),
        .CARRYINSEL(3'd0), .ACIN(30'd0), .BCIN(18'd0), .PCIN(48'd0), .CARRYCASCIN(1'b0), .MULTSIGNIN(1'b0),
        .CEA1(1'b0), .CEA2(1'b0), .CEB1(1'b0), .CEB2(1'b0), .CEC(1'b0), .CED(1'b0), .CEAD(1'b0), .CEM(1'b1),
        .CEP(1'b1), .CECTRL(1'b1), .CEALUMODE(1'b0), .CEINMODE(1'b0), .CECARRYIN(1'b0),
        .RSTA(1'b0), .RSTB(1'b0), .RSTC(1'b0), .RSTD(1'b0), .RSTM(1'b0), .RSTP(1'b0), .RSTCTRL(1'b0),
        .RSTALUMODE(1'b0), .RSTINMODE(1'b0), .RSTALLCARRYIN(1'b0),
        .P(p)
    );
`else
    // The same two registers, M and P, as a description.
    reg signed [15:0]    product;
    reg signed [ACC-1:0] held;
    wire signed [ACC-1:0] wide = {{(ACC-16){product[15]}}, product};
    assign sum = held;
    always @(posedge clk) begin
        product <= x_in * w_in;
        held    <= first_out ? wide : held + wide;
    end
`endif
endmodule
