import java.util.HexFormat;
import javax.crypto.Cipher;
import javax.crypto.SecretKeyFactory;
import javax.crypto.spec.PBEKeySpec;
import javax.crypto.spec.PBEParameterSpec;

/** Encrypts "the plain text" under the password "changeit". Arguments: salt in hex, iteration count. */
public class PBEVector {
    public static void main(String[] a) throws Exception {
        Cipher c = Cipher.getInstance("PBEWithMD5AndTripleDES");
        var key = SecretKeyFactory.getInstance("PBEWithMD5AndTripleDES").generateSecret(new PBEKeySpec("changeit".toCharArray()));
        c.init(Cipher.ENCRYPT_MODE, key, new PBEParameterSpec(HexFormat.of().parseHex(a[0]), Integer.parseInt(a[1])));
        System.out.println(HexFormat.of().formatHex(c.doFinal("the plain text".getBytes("US-ASCII"))));
    }
}
