import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.security.Key;
import java.security.KeyStore;
import java.util.Arrays;
import java.util.Collections;
import java.util.HexFormat;
import javax.crypto.spec.SecretKeySpec;

/**
 * Writes and reads JCEKS files with the JDK's own code.
 * write FILE PASSWORD ALIAS ALGORITHM HEX [ALIAS ALGORITHM HEX ...]
 * read FILE PASSWORD: prints "ALIAS ALGORITHM HEX" of each secret key, "ALIAS CLASS" of any other entry, by alias.
 */
public class SecretStore {
    public static void main(String[] a) throws Exception {
        KeyStore ks = KeyStore.getInstance("JCEKS");
        char[] password = a[2].toCharArray();
        if (a[0].equals("write")) {
            ks.load(null, password);
            for (int i = 3; i < a.length; i += 3) {
                ks.setKeyEntry(a[i], new SecretKeySpec(HexFormat.of().parseHex(a[i + 2]), a[i + 1]), password, null);
            }
            try (FileOutputStream out = new FileOutputStream(a[1])) {
                ks.store(out, password);
            }
            return;
        }
        try (FileInputStream in = new FileInputStream(a[1])) {
            ks.load(in, password);
        }
        var aliases = Collections.list(ks.aliases());
        Collections.sort(aliases);
        for (String alias : aliases) {
            Key k = ks.isKeyEntry(alias) ? ks.getKey(alias, password) : null;
            if (k instanceof SecretKeySpec) {
                System.out.println(alias + " " + k.getAlgorithm() + " " + HexFormat.of().formatHex(k.getEncoded()));
            } else {
                System.out.println(alias + " " + (k == null ? ks.getCertificate(alias) : k).getClass().getSimpleName());
            }
        }
    }
}
