// The part of a DSP48E2 slice that gemm_pe.v uses, after AMD's UG579: M = A * B (27 x 18 bits, signed) in a register,
// P = Z + M with Z = 0 or P by OPMODE[6:4], OPMODE in a register. Anything else stops the simulation. For simulation only: a
// synthesis tool brings its own slice.
module DSP48E2 #(
    parameter AMULTSEL = "A", parameter BMULTSEL = "B", parameter A_INPUT = "DIRECT", parameter B_INPUT = "DIRECT",
    parameter USE_MULT = "MULTIPLY", parameter USE_SIMD = "ONE48",
    parameter AREG = 1, parameter ACASCREG = 1, parameter BREG = 1, parameter BCASCREG = 1, parameter CREG = 1,
    parameter DREG = 1, parameter ADREG = 1, parameter MREG = 1, parameter PREG = 1, parameter OPMODEREG = 1,
    parameter ALUMODEREG = 1, parameter INMODEREG = 1, parameter CARRYINREG = 1, parameter CARRYINSELREG = 1
) (
    input  wire        CLK,
    input  wire [29:0] A,
    input  wire [17:0] B,
    input  wire [47:0] C,
    input  wire [26:0] D,
    input  wire [8:0]  OPMODE,
    input  wire [3:0]  ALUMODE,
    input  wire [4:0]  INMODE,
    input  wire        CARRYIN,
    input  wire [2:0]  CARRYINSEL,
    input  wire [29:0] ACIN,
    input  wire [17:0] BCIN,
    input  wire [47:0] PCIN,
    input  wire CARRYCASCIN, MULTSIGNIN, CEA1, CEA2, CEB1, CEB2, CEC, CED, CEAD, CEM, CEP, CECTRL, CEALUMODE, CEINMODE,
    input  wire CECARRYIN, RSTA, RSTB, RSTC, RSTD, RSTM, RSTP, RSTCTRL, RSTALUMODE, RSTINMODE, RSTALLCARRYIN,
    output reg  [47:0] P
);
    wire used = (AMULTSEL == "A") && (BMULTSEL == "B") && (A_INPUT == "DIRECT") && (B_INPUT == "DIRECT") && (USE_MULT == "MULTIPLY")
        && (USE_SIMD == "ONE48") && (AREG == 0) && (BREG == 0) && (MREG == 1) && (PREG == 1) && (OPMODEREG == 1)
        && (ALUMODEREG == 0) && (INMODEREG == 0) && (ALUMODE == 0) && (INMODE == 0) && (CARRYINSEL == 0) && !CARRYIN
        && CEM && CEP && CECTRL && !RSTM && !RSTP && !RSTCTRL
        && (OPMODE[8:7] == 0) && (OPMODE[3:0] == 4'b0101) && (OPMODE[6:4] == 0 || OPMODE[6:4] == 3'b010);
    reg signed [44:0] m;
    reg        [2:0]  z;
    always @(posedge CLK) begin
        if (!used) $fatal(1, "this model has not what DSP48E2 is asked for");
        m <= $signed(A[26:0]) * $signed(B);
        z <= OPMODE[6:4];
        P <= (z == 3'b010 ? P : 48'd0) + {{3{m[44]}}, m};
    end
endmodule
