// One column's INT32 sums to INT8: y = clamp(floor(((sum + bias) * multiplier + 2^(shift-1)) / 2^shift), -128, 127).
//
// Exact in every step: the sum with its bias has ACC+1 bits, the product ACC+18, nothing wraps. Halves round up.
// The parameters come over the weight port, 7 bytes a channel, into the bank whose tile they belong to: 4 bytes of bias,
// 2 of the unsigned multiplier, 1 of shift - 1 (0 to 63), the low byte first. 4 cycles from `sum` to `y`.
module requantise #(
    parameter ACC = 32
) (
    input  wire           clk,
    input  wire           load,
    input  wire           load_bank,
    input  wire [7:0]     load_byte,
    input  wire [ACC-1:0] sum,
    input  wire           bank,
    output reg  [7:0]     y
);
    reg [55:0] parameters0, parameters1;
    always @(posedge clk) begin
        // Bytes enter at the top and push the others down: after 7 of them the first is lowest. So no byte is numbered.
        if (load & ~load_bank) parameters0 <= {load_byte, parameters0[55:8]};
        if (load &  load_bank) parameters1 <= {load_byte, parameters1[55:8]};
    end

    wire [55:0] now = bank ? parameters1 : parameters0;
    // One stage a cycle: bias, product, shift, rounding with its clamp. What later stages need travels beside.
    reg signed [ACC:0]    biased;
    reg        [15:0]     multiplier;
    reg        [5:0]      shift_1, shift_2;
    reg signed [ACC+17:0] product;
    reg signed [ACC+17:0] shifted;
    // floor((floor(p / 2^(s-1)) + 1) / 2) is floor((p + 2^(s-1)) / 2^s): the rounding needs no adder of full width.
    wire signed [9:0] rounded = $signed(shifted[9:0]) + 10'sd1;

    always @(posedge clk) begin
        biased     <= $signed(sum) + $signed(now[31:0]);
        multiplier <= now[47:32];
        shift_1    <= now[53:48];
        product    <= biased * $signed({1'b0, multiplier});
        shift_2    <= shift_1;
        shifted    <= product >>> shift_2;
        // (253 + 1) >> 1 is 127, and anything from -256 up is -128 or more: between the two `rounded` cannot overflow.
        if (shifted >= 253)       y <= 8'h7f;
        else if (shifted < -256)  y <= 8'h80;
        else                      y <= rounded[8:1];
    end
endmodule
